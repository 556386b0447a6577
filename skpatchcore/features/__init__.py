"""Pixels to grids of patch features (Eq. 1-4)."""
