"""Helpers that all other folders of the package may import: devices, arrays, progress bars, files, labels."""
