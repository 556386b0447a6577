"""`ModelFileError` and `ExportError`: errors of files of detectors."""

from __future__ import annotations


class ModelFileError(ValueError):
    """Raised by :func:`load` if a file is not a readable model file; the message states the file and the reason."""


class ExportError(ValueError):
    """Raised by :func:`~skpatchcore.export` if a detector cannot be exported; the message states the reason."""
