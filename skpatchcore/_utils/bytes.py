"""Memory sizes: parse and format texts such as ``"4GB"``, and report the available memory."""

from __future__ import annotations

import re
from typing import Any

from skpatchcore._utils.limits import available_bytes

__all__ = ["available_bytes", "format_bytes", "parse_bytes"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(value: Any) -> int:
    """Return a memory size in bytes.

    Parameters
    ----------
    value : int or str
        A number of bytes, or a text such as ``"4GB"`` or ``"512 MiB"``.

    Returns
    -------
    int
        Number of bytes.

    Raises
    ------
    ValueError
        If the text is not a memory size.
    """
    if not isinstance(value, str):
        return int(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", value.upper())
    if match is None:
        raise ValueError(f"{value!r} is not an amount of memory: write '4GB', '512MiB', or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes as readable text with three significant digits, such as ``"1.84 GB"``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.0f} B"
