"""Lines of the tables: the result of a file as a row of CSV and as a line of JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from skpatchcore._utils.names import escape_name
from skpatchcore.reports.predictions import Prediction, cells_of, columns_of

# Columns after those of the table of `predict`.
_MORE = ["time", "model"]


def csv_header(has_products: bool) -> bytes:
    """Return the first line of the table."""
    return _row([*columns_of(has_products), *_MORE])


def csv_line(prediction: Prediction, has_products: bool, time: str, digest: str) -> bytes:
    """Return the row of a file: the columns of `predict`, the time, and the digest of the model."""
    return _row([*cells_of(prediction, has_products), time, digest])


def json_line(prediction: Prediction, has_products: bool, time: str, digest: str, **more: Any) -> bytes:
    """Return the line of JSON of a file. Numbers that are unknown are null.

    Parameters
    ----------
    prediction : Prediction
        The result.
    has_products : bool
        Whether the line states the product.
    time : str
        When the file was judged.
    digest : str
        Digest of the model.
    **more : dict
        Further values.

    Returns
    -------
    bytes
        ASCII. Paths are written as in the CSV table, with escapes for bytes that are not valid.
    """
    values = {
        "path": escape_name(prediction.path),
        "score": prediction.score,
        "decision": prediction.decision,
        "label": prediction.label,
        "p_value": prediction.p_value,
        "map": prediction.picture,
        "problem": escape_name(prediction.problem),
        **({"product": escape_name(prediction.product or "") or None} if has_products else {}),
        "time": time,
        "model": digest,
        **more,
    }
    known = {name: None if _is_unknown(value) else value for name, value in values.items()}
    return json.dumps(known, allow_nan=False).encode() + b"\n"


def _row(values: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue().encode()


def _is_unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
