"""Arrays in files that are there whole or not at all: what caches on disk are made of."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_memory


def folder_of(memory: Any, name: str) -> Path | None:
    """Return the folder `name` where a `memory` parameter says that results are kept; None if nothing is.

    Parameters
    ----------
    memory : str, path, joblib.Memory or None
        As scikit-learn's estimators have it.
    name : str
        Of the folder.
    """
    location = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory).location
    return None if location is None else Path(location) / name


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return what :func:`write_arrays` wrote; None if there is no such file or it is damaged.

    The format is numpy's ``.npz``, whose checksums are verified on reading.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        return None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays in one step: a reader finds the whole file or none, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
