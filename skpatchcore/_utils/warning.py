"""`warn_user`: issue warnings that point to the user's line of code, not to a line within this package."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import sys
import warnings
from pathlib import Path

# Files of these packages do not count as user code. They are not imported: only loaded packages can call this one.
_INNER = ("sklearn", "joblib")
_HELPERS = (contextlib.__file__, copy.__file__, pickle.__file__)
_PACKAGE = str(Path(__file__).parents[1]) + os.sep


def warn_user(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the innermost line outside this package, scikit-learn and joblib.

    Parameters
    ----------
    message : str or Warning
        The message: what is wrong, with which value, and what to do.
    category : type, default=UserWarning
        Class of the warning. Ignored if `message` is a Warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inner(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_inner(filename: str) -> bool:
    """Return whether a file belongs to this package or to a library that calls this package."""
    loaded = (sys.modules.get(name) for name in _INNER)
    folders = (str(Path(module.__file__).parent) + os.sep for module in loaded if module and module.__file__)
    return filename.startswith((*folders, _PACKAGE)) or filename in _HELPERS
