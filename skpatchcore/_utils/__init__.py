"""Helpers below every other room: devices, arrays, progress, files, labels."""
