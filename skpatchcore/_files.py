"""Arrays in files that are there whole or not at all: what caches on disk are made of."""

from __future__ import annotations

import os
import threading
import zipfile
from io import BytesIO
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

    The format is numpy's ``.npz``. Each member is read to its end before it is looked into, for only then is its
    checksum verified.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                content = BytesIO(archive.read(member))
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(content, allow_pickle=False)
                if content.read(1):
                    return None
    except Exception:  # damaged bytes raise anything, and a cache can do without any of them
        return None
    return arrays


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
