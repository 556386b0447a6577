"""Patch features to the memory bank: the coreset (Eq. 5, Algorithm 1)."""
