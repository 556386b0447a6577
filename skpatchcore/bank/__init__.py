"""Patches to the memory bank, within a memory budget, and its scores (Eq. 6-7)."""
