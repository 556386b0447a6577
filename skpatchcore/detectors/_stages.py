"""The detector's stages by name: what stands for a default, and fresh estimators with a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.index.exact import ExactIndex
from skpatchcore.index.pynndescent import PyNNDescentIndex

STAGES = ("extractor", "sampler", "index")
INDEXES = {"exact": ExactIndex, "pynndescent": PyNNDescentIndex}


def stands_for_default(given: Any) -> bool:
    """Return whether a stage is given as None or by an index's name."""
    return given is None or (isinstance(given, str) and given in INDEXES)


def default_stage(name: str, given: str | None) -> Any:
    """Return the estimator that None, or an index's name, stands for."""
    if name == "extractor":
        return TorchFeatureExtractor()
    return GreedyCoresetSampler() if name == "sampler" else INDEXES[given or "exact"]()


def make_stage(name: str, given: Any, rng: np.random.RandomState | None, verbose: int) -> Any:
    """Return a fresh estimator for a stage.

    Parameters
    ----------
    name : {"extractor", "sampler", "index"}
        Which.
    given : estimator, str or None
        The detector's parameter.
    rng : RandomState or None
        Seeds an estimator that has no seed of its own; None leaves it without.
    verbose : int
        The detector's: only selection shows progress itself, of the others the detector does.

    Returns
    -------
    estimator or None
        None stands for precomputed features.
    """
    if isinstance(given, str) and given == "precomputed":
        return None
    estimator = default_stage(name, given) if stands_for_default(given) else clone(given)
    params = estimator.get_params(deep=False)
    if "random_state" in params and params["random_state"] is None and rng is not None:
        estimator.set_params(random_state=int(rng.randint(2**31 - 1)))
    if name == "sampler" and params.get("verbose") == 0:
        estimator.set_params(verbose=verbose)
    return estimator
