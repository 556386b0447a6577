"""The log of a detector, `updates_`: one entry for `fit` and for each later change, in plain JSON types."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

# Values of a detector that an entry holds before and after the change.
_VALUES = {"offset": "offset_", "pixel_offset": "pixel_offset_", "promised_rate": "promised_rate_"}


def values_of(detector: Any) -> dict[str, float | int | None]:
    """Return the thresholds, the promised rate and the size of the bank of a detector; None if they are unknown."""
    found: dict[str, float | int | None] = {}
    for name, attribute in _VALUES.items():
        value = getattr(detector, attribute, None)
        found[name] = None if value is None or math.isnan(value) else float(value)
    bank = getattr(detector, "memory_bank_", None)
    found["n_bank"] = None if bank is None else len(bank)
    return found


def log_update(
    detector: Any,
    kind: str,
    before: dict[str, Any],
    *,
    n_images: int,
    paths: Sequence[str | None] | None = None,
    digests: Sequence[str] | None = None,
    note: str | None = None,
) -> None:
    """Append an entry to the log of a detector.

    Parameters
    ----------
    detector : PatchCoreDetector
        The detector after the change. Its list `updates_` is replaced by a longer list.
    kind : str
        What was done: "fit", "partial_fit", "forget", "recalibrate" or "feedback".
    before : dict
        Result of :func:`values_of` before the change.
    n_images : int
        Number of images that were added, forgotten or scored.
    paths : list of str or None, default=None
        Their paths; None if the images were no files.
    digests : list of str or None, default=None
        Their SHA-256 digests, see :func:`digest_of`.
    note : str or None, default=None
        A remark, e.g. the command that was run.
    """
    after = values_of(detector)
    entry: dict[str, Any] = {
        "kind": kind,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_images": int(n_images),
        "paths": None if paths is None or not any(paths) else list(paths),
        "digests": None if digests is None else list(digests),
        **{name: [before[name], after[name]] for name in after},
        "note": note,
    }
    detector.updates_ = [*getattr(detector, "updates_", []), entry]


def digest_of(image: Any) -> str:
    """Return the SHA-256 digest of an image: of the bytes of its file, or of the bytes of its array."""
    if isinstance(image, str | os.PathLike):
        with Path(os.fsdecode(image)).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    if isinstance(image, bytes | bytearray):
        return hashlib.sha256(image).hexdigest()
    array = np.asarray(image)
    if array.dtype.hasobject:  # its bytes are addresses in memory
        raise TypeError(f"{type(image).__name__} is neither a file nor an array.")
    return hashlib.sha256(array.tobytes()).hexdigest()


def digests_of(images: Iterable[Any]) -> list[str] | None:
    """Return the digest of each image; None if one of them is neither a file that can be read nor an array."""

    def found() -> Iterator[str]:
        for image in images:
            yield digest_of(image)

    try:
        return list(found())
    except (OSError, TypeError, ValueError):  # no bytes: e.g. an open file, or a name that only the extractor knows
        return None
