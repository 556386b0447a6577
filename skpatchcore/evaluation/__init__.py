"""Detectors on whole data sets: metrics, studies, and results that are kept."""
