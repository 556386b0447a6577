"""What is said of one image."""

from __future__ import annotations

from typing import NamedTuple


class Judged(NamedTuple):
    """One image's line.

    Attributes
    ----------
    path : str
        Its file.
    score, decision, p_value : float
        As the detector's methods give them; NaN where the image could not be read or there is no threshold.
    label : int or None
        +1 normal, -1 anomalous; None without a threshold.
    picture : str or None
        Its heat map's file name; None where it could not be read.
    problem : str
        Why it could not be.
    """

    path: str
    score: float
    decision: float
    label: int | None
    p_value: float
    picture: str | None
    problem: str = ""
