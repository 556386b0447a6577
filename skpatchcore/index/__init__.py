"""Nearest rows of the memory bank."""
