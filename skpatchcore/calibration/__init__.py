"""Scores of good images to thresholds and p-values."""
