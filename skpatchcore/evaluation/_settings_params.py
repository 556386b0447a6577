"""settings_of and prepared: the settings of a grid, and the detectors with which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid

from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.protocols import pixel_format_or_none, ratio_of

# Detectors without a seed get this one, so that all settings use the same draws.
_SEED = 0
# Least number of rows in the memory banks of the comparison.
_LEAST_ROWS = 500


def with_params(detector: Any, params: Mapping[str, Any]) -> Any:
    """Return a clone of a detector with other parameters. Estimators among the values are cloned, too."""
    return clone(detector).set_params(**{name: clone(value, safe=False) for name, value in params.items()})


def settings_of(detector: Any, grid: Any) -> list[dict[str, Any]]:
    """Return the changed parameters of each setting: none for the given setting, which comes first.

    A parameter that has the value of the given setting does not count as changed.

    Raises
    ------
    ValueError
        If a parameter is unknown, or if no setting differs from the given one.
    """
    settings: list[dict[str, Any]] = [{}]
    seen = {key_of(clone(detector))}
    for params in ParameterGrid(grid):
        changed = dict(sorted(params.items()))
        key = key_of(with_params(detector, changed))
        if key in seen:
            continue
        seen.add(key)
        for name in sorted(changed, reverse=True):  # parameters of a stage before the stage itself
            others = {other: value for other, value in changed.items() if other != name}
            try:
                if key_of(with_params(detector, others)) == key:
                    changed = others
            except ValueError:  # the other parameters need this one
                continue
        settings.append(changed)
    if len(settings) < 2:
        raise ValueError("grid: there is no setting other than that of the detector.")
    return settings


def key_of(estimator: Any) -> tuple[Any, ...]:
    """Return a key that two estimators share if all their parameters, and those of their stages, are equal."""
    return type(estimator).__qualname__, *(
        (name, type(value).__qualname__ if hasattr(value, "get_params") else hash_of(value))
        for name, value in sorted(estimator.get_params(deep=True).items())
    )


def hash_of(value: Any) -> Any:
    """Return a hash of the content of a value; its identity if it cannot be pickled."""
    try:
        return joblib.hash(value)
    except Exception:  # a function without a name cannot be pickled: only the same object is equal
        return id(value)


def prepared(
    detector: Any, params: Mapping[str, Any], ratio: float | None, *, image: Any, n_images: int, memory: Any
) -> Any:
    """Return the detector of a setting for the comparison: without calibration, with a cache and a small bank.

    Parameters
    ----------
    detector : detector
        The given detector.
    params : mapping of str to object
        Changed parameters of the setting.
    ratio : float or None
        Fraction of the patches in the memory bank, which is raised to at least 500 rows. None keeps the detector's own.
    image : image
        Example of a training image.
    n_images : int
        Number of images of the smallest training part.
    memory : str, path or joblib.Memory
        Folder of the cache of an extractor without a cache of its own.

    Raises
    ------
    ValueError
        If a parameter has an invalid value, or describes how the images are stored. The error names the setting.
    """
    made = with_params(detector, params)
    names = made.get_params(deep=False)
    given, own = (pixel_format_or_none(some.get_params(deep=False).get("extractor")) for some in (detector, made))
    if given is not None and own is not None and given != own:
        raise ValueError(
            f"the setting {dict(params)} changes how stored images are read. Settings are compared on the same images: "
            "set channel_order and value_range of the detector itself."
        )
    changed: dict[str, Any] = {"calibration": None, "verbose": 0}
    if names.get("random_state") is None:
        changed["random_state"] = _SEED
    extractor = TorchFeatureExtractor() if names["extractor"] is None else names["extractor"]
    if isinstance(extractor, TorchFeatureExtractor) and extractor.memory is None:
        changed["extractor__memory"] = memory
    try:
        for part in (made, *names.values()):
            if hasattr(part, "_validate_params"):
                part._validate_params()
    except ValueError as error:
        raise ValueError(f"the setting {dict(params)} is not valid: {error}") from error
    sampler = names.get("sampler", made)
    sampler = GreedyCoresetSampler() if sampler is None else sampler
    if ratio is not None and "ratio" in sampler.get_params(deep=False):
        largest = ratio_of(sampler)
        if isinstance(largest, float) and largest > ratio:
            n_patches = n_images * _n_patches_of(extractor, image)
            changed["sampler__ratio"] = min(largest, max(ratio, min(1.0, _LEAST_ROWS / n_patches)))
    return made.set_params(**changed)


def _n_patches_of(extractor: Any, image: Any) -> int:
    """Return the number of patches of an image."""
    features = clone(extractor).fit([image]).transform([image])
    return int(np.prod(np.shape(features[0])[:-1]))
