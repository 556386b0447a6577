"""unfitted: a clone of a detector for a fit whose model is measured and not kept."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone


def unfitted(detector: Any) -> Any:
    """Return an unfitted clone of a detector, without the reserve from which `forget` fills the memory bank.

    The reserve does not change the scores. A model that is only measured never forgets images.
    """
    cloned = clone(detector)
    return cloned.set_params(reserve=False) if "reserve" in cloned.get_params(deep=False) else cloned
