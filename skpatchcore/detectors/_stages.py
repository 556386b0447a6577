"""Creation of a detector's stages (extractor, sampler, index) from its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.index.exact import ExactIndex
from skpatchcore.index.pynndescent import PyNNDescentIndex

INDEXES = {"exact": ExactIndex, "pynndescent": PyNNDescentIndex}


def stands_for_default(name: str, given: Any) -> bool:
    """Return whether a stage parameter is None or the name of an index. ``transformer=None`` stands for no stage."""
    if given is None:
        return name != "transformer"
    return isinstance(given, str) and given in INDEXES


def default_stage(name: str, given: str | None) -> Any:
    """Return the default estimator of a stage, or the index with the given name."""
    if name == "extractor":
        return TorchFeatureExtractor()
    return GreedyCoresetSampler() if name == "sampler" else INDEXES[given or "exact"]()


def with_stages_for(
    detector: Any, params: dict[str, Any], default: Callable[[str, Any], Any] = default_stage
) -> dict[str, Any]:
    """Return arguments of `set_params` in which nested parameters have an estimator to which they belong.

    Parameters
    ----------
    detector : estimator
        Detector with the attribute ``_stage_names``.
    params : dict
        Arguments of `set_params`, e.g. with the name ``extractor__patch_size``. If the stage is None or the name of an
        index, the estimator for which it stands is added.
    default : callable, default=default_stage
        ``default(name, given)`` returns the estimator for which the value of a stage stands.
    """
    for name in detector._stage_names:
        given = params.get(name, getattr(detector, name))
        nested = [key for key in params if key.startswith(f"{name}__")]
        if nested and name == "transformer" and given is None:
            raise ValueError(
                f"{nested[0]} cannot be set, because transformer=None. Set transformer to an estimator first, e.g. "
                "PatchWhitening()."
            )
        if nested and stands_for_default(name, given):
            params = {**params, name: default(name, given)}
    return params


def make_stage(name: str, given: Any, rng: np.random.RandomState | None, device: str, verbose: int) -> Any:
    """Return a new, unfitted estimator for a stage.

    The stage takes its seed, device and verbosity from the detector if its own parameters have the default values.

    Parameters
    ----------
    name : {"extractor", "transformer", "sampler", "index"}
        Name of the stage.
    given : estimator, "precomputed" or None
        Value of the detector's parameter with this name, or the estimator for which it stands.
    rng : RandomState or None
        Generator that draws the seed of an estimator with ``random_state=None``. If None, no seed is drawn.
    device : str
        Device of an estimator with ``device="auto"``.
    verbose : int
        Verbosity of a sampler with ``verbose=0``. The detector itself shows the progress of the other stages.

    Returns
    -------
    estimator or None
        None for precomputed features, and without a transformer.
    """
    if (isinstance(given, str) and given == "precomputed") or (name == "transformer" and given is None):
        return None
    estimator = clone(given)
    params = estimator.get_params(deep=False)
    inherited: dict[str, Any] = {}
    if "random_state" in params and params["random_state"] is None and rng is not None:
        inherited["random_state"] = int(rng.randint(2**31 - 1))
    if params.get("device") == "auto":
        inherited["device"] = device
    if name == "sampler" and params.get("verbose") == 0:
        inherited["verbose"] = verbose
    return estimator.set_params(**inherited) if inherited else estimator
