"""Files that are there whole or not at all: what models are saved in, and caches on disk are made of."""

from __future__ import annotations

import contextlib
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_memory


def cache_folder(memory: Any, name: str) -> Path | None:
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
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def written_whole(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a file to write, which takes the place of another one in one step when it is done.

    Whatever stops the writer, and whenever, what lay at `path` before is still there, or the whole new file is.

    Parameters
    ----------
    path : path
        What is to be written.
    durable : bool, default=False
        Wait until the disk has it, so that this holds for a loss of power too.

    Yields
    ------
    Path
        In the same folder. Removed if the block raises.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        if durable:
            _flush(partial)
        os.replace(partial, path)
        if durable and os.name == "posix":  # elsewhere a folder can't be opened
            with contextlib.suppress(OSError):  # some network shares can't; the new file is in its place by now
                _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
