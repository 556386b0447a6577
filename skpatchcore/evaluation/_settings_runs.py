"""Scores of good images and of synthetic defects under each setting of :func:`~skpatchcore.select_settings`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from skpatchcore._utils.progress import progress_bar
from skpatchcore.evaluation._clones import unfitted
from skpatchcore.evaluation._settings_params import hash_of, key_of
from skpatchcore.evaluation._trials import DrawnImages, Trial
from skpatchcore.features._families import default_layers
from skpatchcore.features._grid_cache import layer_maps_only
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.images.errors import ImageError
from skpatchcore.images.roi import as_region
from skpatchcore.patches.stream import PatchStream

# Parameters of the extractor that do not change which outputs of the network are needed, and the layers.
_NOT_OF_THE_NETWORK = {"layers": None, "patch_size": 3, "stride": 1, "n_channels": None}


@dataclass
class SettingScores:
    """Anomaly scores under one setting, **bigger = more anomalous**, and what the setting costs.

    Attributes
    ----------
    good : array of shape (n_images,), float64
        Scores of the good images by detectors that were fitted without them.
    defects : array of shape (n_defects,), float64
        Scores of the images with a defect by the same detectors.
    fit_seconds : float
        Duration of one fit, mean over the folds.
    ms_per_image : float
        Duration of scoring one image in milliseconds, with the drawing of its defect.
    model_bytes : int
        Size of the memory bank; 0 if the detector has none.
    """

    good: np.ndarray
    defects: np.ndarray
    fit_seconds: float = 0.0
    ms_per_image: float = 0.0
    model_bytes: int = 0


def warm_caches(detectors: Sequence[Any], images: Sequence[Any], verbose: int) -> None:
    """Run the network once per image and size, and store its outputs in the cache of the extractors.

    Extractors of one network that differ only in their layers, with the same last layer, and in how features are made
    from them share one run, in which the network returns the outputs of all these layers.
    """
    shared: dict[Any, tuple[Any, Any, list[str]]] = {}
    for detector in detectors:
        extractor = getattr(detector, "extractor", None)
        if not isinstance(extractor, TorchFeatureExtractor) or extractor.memory is None:
            continue
        plain = clone(extractor).set_params(**_NOT_OF_THE_NETWORK)
        if plain.device == "auto":
            plain.set_params(device=detector.device)
        # The weights up to the last layer identify this layer.
        key = key_of(plain), hash_of(detector.roi), extractor.network_digests()
        _, _, layers = shared.setdefault(key, (plain, detector.roi, []))
        used = default_layers(extractor.backbone) if extractor.layers is None else extractor.layers
        layers += [name for name in used if name not in layers]
    with progress_bar(len(shared) * len(images), "network", "image", verbose) as bar:
        for extractor, roi, layers in shared.values():
            extractor.set_params(layers=layers).fit(images[:1])
            # The stream fills the pixels outside the region of interest, as the detector does.
            with layer_maps_only():
                for patches in PatchStream(extractor, images, region=None if roi is None else as_region(roi)):
                    bar.update(len(patches))


def score_settings(
    detectors: Sequence[Any],
    settings: Sequence[Mapping[str, Any]],
    images: Sequence[Any],
    trials: Sequence[Trial],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    draw: Callable[[Sequence[Trial]], DrawnImages],
    verbose: int,
) -> list[SettingScores]:
    """Fit each detector on the training part of each fold, and score the test part with and without defects.

    Parameters
    ----------
    detectors : sequence of detectors
        One unfitted detector per setting. Detectors that differ only in `image_score` share their fits.
    settings : sequence of mapping of str to object
        Changed parameters of each detector, for error messages.
    images : sequence of images
        The good images.
    trials : sequence of Trial
        The defects.
    folds : sequence of (array of int, array of int)
        Indices of the training and of the test images. Each image is in one test part.
    draw : callable
        ``draw(trials)`` returns the images with these defects.
    verbose : int
        If not 0, a progress bar is shown.

    Raises
    ------
    ValueError
        If a detector cannot be fitted on the images. The error names the setting.
    """
    found = [SettingScores(np.full(len(images), np.nan), np.full(len(trials), np.nan)) for _ in detectors]
    of_images = np.array([trial.image for trial in trials])
    with progress_bar(len(detectors) * len(folds), "comparing settings", "fit", verbose) as bar:
        for members in _sharing_fits(detectors):
            for train, test in folds:
                defects = np.flatnonzero(np.isin(of_images, test))
                begin = time.perf_counter()
                fitted = fitted_on(detectors[members[0]], images, train, settings[members[0]])
                seconds = time.perf_counter() - begin
                for i in members:
                    model = copy(fitted)
                    if hasattr(model, "image_score"):
                        model.image_score = detectors[i].image_score
                    begin = time.perf_counter()
                    with original_numbers(test):
                        found[i].good[test] = -model.score_samples([images[j] for j in test])
                    if len(defects):
                        found[i].defects[defects] = -model.score_samples(draw([trials[j] for j in defects.tolist()]))
                    elapsed = time.perf_counter() - begin
                    found[i].fit_seconds += seconds / len(folds)
                    found[i].ms_per_image += 1000 * elapsed / (len(images) + len(trials))
                    found[i].model_bytes = int(getattr(getattr(fitted, "memory_bank_", None), "nbytes", 0))
                    bar.update(1)
    return found


def fitted_on(detector: Any, images: Sequence[Any], some: np.ndarray, params: Mapping[str, Any]) -> Any:
    """Fit a clone of a detector on some of the images; an error names the image's index, or the changed parameters."""
    try:
        with original_numbers(some):
            return unfitted(detector).fit([images[i] for i in some])
    except ImageError:
        raise
    except ValueError as error:
        raise ValueError(
            f"the setting {dict(params)} cannot be fitted on {len(some)} of the images: {error}"
        ) from error


@contextmanager
def original_numbers(some: np.ndarray) -> Iterator[None]:
    """In an ImageError, replace the index of an image among `some` images by its index among all images."""
    try:
        yield
    except ImageError as error:
        raise ImageError(error.message, int(some[error.index]), error.path) from error


def _sharing_fits(detectors: Sequence[Any]) -> list[list[int]]:
    """Return lists of detectors that differ only in `image_score`."""
    groups: dict[Any, list[int]] = {}
    for i, detector in enumerate(detectors):
        plain = clone(detector)
        if "image_score" in plain.get_params(deep=False):
            plain.set_params(image_score="max")
        groups.setdefault(key_of(plain), []).append(i)
    return list(groups.values())
