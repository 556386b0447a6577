"""Detectors on whole data sets: metrics, studies and stored results."""
