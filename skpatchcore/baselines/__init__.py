"""The methods that the paper compares PatchCore with, as detectors of the same kind."""
