"""`warn_user`: issue warnings that point to the user's line of code, not to a line within this package.

:func:`collected_warnings` collects these warnings instead, e.g. on a worker, from which the user would not see them.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

# Files of these packages do not count as user code. They are not imported: only loaded packages can call this one.
_INNER = ("sklearn", "joblib")
_HELPERS = (contextlib.__file__, copy.__file__, pickle.__file__)
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
# A context variable and not `warnings.catch_warnings`: other threads of the process are not affected.
_collected: ContextVar[list[Warning] | None] = ContextVar("skpatchcore_warnings", default=None)


def warn_user(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the innermost line outside this package, scikit-learn and joblib.

    Parameters
    ----------
    message : str or Warning
        The message: what is wrong, with which value, and what to do.
    category : type, default=UserWarning
        Class of the warning. Ignored if `message` is a Warning.
    """
    if (collected := _collected.get()) is not None:
        collected.append(message if isinstance(message, Warning) else category(message))
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inner(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[Warning]]:
    """Collect the warnings of :func:`warn_user` in the block and in this thread, instead of issuing them.

    Yields
    ------
    list of Warning
        The warnings. The list is filled while the block runs.
    """
    collected: list[Warning] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def _is_inner(filename: str) -> bool:
    """Return whether a file belongs to this package or to a library that calls this package."""
    loaded = (sys.modules.get(name) for name in _INNER)
    folders = (str(Path(module.__file__).parent) + os.sep for module in loaded if module and module.__file__)
    return filename.startswith((*folders, _PACKAGE)) or filename in _HELPERS
