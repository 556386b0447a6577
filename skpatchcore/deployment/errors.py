"""`ModelFileError` and `ExportError`: errors of files of detectors."""

from __future__ import annotations


class ModelFileError(ValueError):
    """Raised if a file is not a readable model file; the message states the file and the reason.

    :func:`load`, :func:`verify` and :class:`OnnxDetector` raise this error.
    """


class ExportError(ValueError):
    """Raised by :func:`export` if a detector cannot be exported; the message states the reason."""
