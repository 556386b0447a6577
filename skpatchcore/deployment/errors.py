"""`ModelFileError`: the error for files that are not readable files of a detector."""

from __future__ import annotations


class ModelFileError(ValueError):
    """Raised if a file is not a readable model file; the message states the file and the reason.

    :func:`load` and :class:`OnnxDetector` raise this error.
    """
