"""The public detectors."""
