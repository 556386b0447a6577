"""low_shot_curve and ablation: evaluations with few training images, and with other values of a parameter."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid

from skpatchcore._utils.names import escape_name
from skpatchcore._utils.progress import progress_bar
from skpatchcore.coreset.greedy import GreedyCoresetSampler
from skpatchcore.coreset.proxies import LearnedProxySampler
from skpatchcore.coreset.uniform import RandomSampler
from skpatchcore.evaluation.category import as_categories, check_before, evaluate_category
from skpatchcore.features._families import default_layers
from skpatchcore.features.extractor import TorchFeatureExtractor

ABLATIONS = ("patch_size", "layers", "stride", "sampler")
SHOTS = (1, 2, 5, 10, 20, 50)
_RATIOS = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes
    ----------
    category : str
        Name of the category.
    name : str
        Name of the setting, which is also the name of a folder.
    settings : dict
        Values of the setting, one per column of a table.
    detector : estimator
        Detector that is not fitted.
    dataset : ImageFolder or TextureTask
        Training images and test images.
    """

    category: str
    name: str
    settings: dict[str, Any]
    detector: Any
    dataset: Any


def plain_runs(detector: Any, categories: Mapping[str, Any]) -> Iterator[Run]:
    """Yield one run per category, with all its images."""
    for category, dataset in categories.items():
        yield Run(category, "all", {}, detector, dataset)


def low_shot_runs(
    detector: Any, categories: Mapping[str, Any], shots: Sequence[int], n_repeats: int, random_state: int
) -> Iterator[Run]:
    """Yield runs on a few training images per category, which are drawn for each repetition.

    The draws of one repetition are nested: the five images of a run include the two images of another run.
    """
    most = max((len(dataset.train_images) for dataset in categories.values()), default=0)
    if not shots or min(shots) < 1 or min(shots) > most:
        raise ValueError(
            f"shots={list(shots)}: expected numbers from 1 to {most}, the largest number of training images of a "
            "category."
        )
    for category, dataset in categories.items():
        # a seed from the name: the draws of a category do not depend on the other categories
        number = zlib.crc32(category.encode("utf-8", "surrogateescape"))
        for repeat in range(n_repeats):
            order = np.random.default_rng([random_state, number, repeat]).permutation(len(dataset.train_images))
            for n in shots:
                if n <= len(order):
                    some = _with_train(dataset, np.sort(order[:n]))
                    settings = {"shots": n, "repeat": repeat}
                    yield Run(category, f"shots-{n}-{repeat}", settings, _for_few(detector, some), some)


def ablation_runs(detector: Any, categories: Mapping[str, Any], grid: Any) -> Iterator[Run]:
    """Yield one run per category and setting of a :class:`~sklearn.model_selection.ParameterGrid`."""
    for category, dataset in categories.items():
        names: set[str] = set()
        for parameters in ParameterGrid(grid):
            settings = {name: _text(value) for name, value in parameters.items()}
            tried = clone(detector).set_params(**{name: _fresh(value) for name, value in parameters.items()})
            text = "-".join(f"{key.rsplit('__', 1)[-1]}-{value}" for key, value in settings.items())
            base = "".join(c if c.isalnum() or c in "-._" else "_" for c in text)[:100]
            name = next(n for i in count(1) if (n := base if i == 1 else f"{base}-{i}") not in names)
            names.add(name)
            yield Run(category, name, settings, tried, dataset)


def named_grid(name: str, detector: Any) -> dict[str, list[Any]]:
    """Return the grid of one of the studies of the paper.

    Parameters
    ----------
    name : {"patch_size", "layers", "stride", "sampler"}
        Name of the study: Figure 4 of the paper (patch size, layers), section 4.4.3 (stride), or Figure 5 (sampler and
        ratio).
    detector : estimator
        Detector of the study. Its backbone determines the layers.

    Returns
    -------
    dict
        Grid for :func:`ablation`.

    Raises
    ------
    ValueError
        If there is no study of this name.
    """
    if name == "patch_size":
        return {"extractor__patch_size": [1, 3, 5, 7, 9]}
    if name == "stride":
        return {"extractor__stride": [1, 2, 3]}
    if name == "layers":
        extractor = getattr(detector, "extractor", None) or TorchFeatureExtractor()
        return {"extractor__layers": _layer_choices(extractor.backbone)}
    if name == "sampler":
        kinds = (GreedyCoresetSampler, RandomSampler, LearnedProxySampler)
        return {"sampler": [kind(ratio) for ratio in _RATIOS for kind in kinds]}
    raise ValueError(f"ablation {name!r}: expected one of {[*ABLATIONS]}.")


def low_shot_curve(
    detector: Any,
    dataset: Any,
    shots: Sequence[int] = SHOTS,
    *,
    n_repeats: int = 3,
    resolution: str = "own",
    random_state: int = 0,
    client: Any = None,
    verbose: int = 0,
) -> pd.DataFrame:
    """Evaluate a detector that is fitted on few images (section 4.5 of the paper).

    Parameters
    ----------
    detector, dataset
        As for :func:`~skpatchcore.evaluate`. With ``TorchFeatureExtractor(memory=...)``, the network processes each
        image once.
    shots : sequence of int, default=(1, 2, 5, 10, 20, 50)
        Numbers of training images. Numbers above the number of training images of a category are skipped for this
        category.
    n_repeats : int, default=3
        Number of draws of the training images.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    random_state : int, default=0
        Seed of the draws.
    client : distributed.Client or None, default=None
        As for :func:`~skpatchcore.evaluate`.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    DataFrame
        One row per category, number of images and draw, with the columns ``category``, ``shots``, ``repeat``, and the
        columns of :func:`~skpatchcore.evaluate`.

    Raises
    ------
    ValueError, ImageError, WeightsError, FileNotFoundError
        As raised by :func:`~skpatchcore.evaluate`.

    Notes
    -----
    If there are too few images for the calibration of the detector, there is no threshold, and the columns of decisions
    are NaN. This is always so with one image. An ensemble needs calibration, and therefore at least three images.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation.studies import low_shot_curve
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> low_shot_curve(detector, make_textures("brick"), [2, 5], n_repeats=1)["shots"].tolist()
    [2, 5]
    """
    runs = low_shot_runs(detector, as_categories(dataset), shots, n_repeats, random_state)
    return _table(list(runs), resolution, client, verbose)


def ablation(
    detector: Any, dataset: Any, grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], *,
    resolution: str = "own", client: Any = None, verbose: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate a detector with each setting of a grid, as in Figures 4 and 5 of the paper.

    Parameters
    ----------
    detector, dataset
        As for :func:`~skpatchcore.evaluate`. With ``TorchFeatureExtractor(memory=...)``, the network processes each
        image once per choice of layers.
    grid : dict or list of dict
        Parameters and their values, as for :class:`~sklearn.model_selection.ParameterGrid`. :func:`named_grid` returns
        the grids of the paper.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    client : distributed.Client or None, default=None
        As for :func:`~skpatchcore.evaluate`.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    DataFrame
        One row per category and setting, with the columns ``category``, one column per parameter (estimators and
        sequences as text), and the columns of :func:`~skpatchcore.evaluate`.

    Raises
    ------
    ValueError, ImageError, WeightsError, FileNotFoundError
        As raised by :func:`~skpatchcore.evaluate`.

    Notes
    -----
    The function compares settings by the labels of the test images, as the paper does. To choose a setting for use,
    search with :class:`~skpatchcore.OneClassSplit` on other images than the images of the final evaluation.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation.studies import ablation
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> table = ablation(detector, make_textures("brick", n_views=2), {"extractor__patch_size": [1, 3]})
    >>> table["extractor__patch_size"].tolist()
    [1, 3]
    """
    return _table(list(ablation_runs(detector, as_categories(dataset), grid)), resolution, client, verbose)


def run_quietly(run: Run, resolution: str, client: Any = None) -> tuple[Any, Any]:
    """Evaluate a run, without warnings of few training images in a low-shot study."""
    with warnings.catch_warnings():
        if "shots" in run.settings:  # the study is about few images
            warnings.simplefilter("ignore", UserWarning)
        return evaluate_category(run.detector, run.category, run.dataset, resolution, client=client)


def _table(runs: list[Run], resolution: str, client: Any, verbose: int) -> pd.DataFrame:
    for run in runs:
        check_before(run.detector, {run.category: run.dataset}, resolution)
    rows = []
    with progress_bar(len(runs), "evaluating", "run", verbose) as bar:
        for run in runs:
            result, _ = run_quietly(run, resolution, client)
            rows.append({"category": escape_name(run.category), **run.settings, **result.row})
            bar.update(1)
    return pd.DataFrame(rows)


def _with_train(dataset: Any, images: np.ndarray) -> Any:
    """Return the data set with a selection of its training images."""
    name = "train_paths" if hasattr(dataset, "train_paths") else "train_images"
    groups = None if dataset.train_groups is None else dataset.train_groups[images]
    return replace(dataset, **{name: getattr(dataset, name)[images], "train_groups": groups})


def _for_few(detector: Any, dataset: Any) -> Any:
    """Return the detector, without calibration if the data set has too few training images or groups for it."""
    if "calibration" not in detector.get_params(deep=False):
        return detector
    calibration = detector.calibration
    n = len(dataset.train_images) if dataset.train_groups is None else len(np.unique(dataset.train_groups))
    if hasattr(calibration, "get_n_splits"):
        needed = calibration.get_n_splits(np.zeros(n), groups=dataset.train_groups) if n > 1 else 2
    else:
        needed = calibration if isinstance(calibration, int) else 2
    return detector if n >= needed else clone(detector).set_params(calibration=None)


def _layer_choices(backbone: Any) -> list[tuple[str, ...]]:
    low, high = default_layers(backbone)
    shallow, deep = {"layer2": ("layer1", "layer4"), "stage3": ("stage2", "stage7")}.get(low, (None, None))
    if shallow is None or deep is None:
        return [(low,), (high,), (low, high)]
    return [
        (shallow,), (low,), (high,), (deep,), (shallow, low), (low, high), (high, deep), (shallow, low, high),
        (low, high, deep),
    ]  # fmt: skip


def _text(value: Any) -> Any:
    """Return the value of a parameter as text or number for a table."""
    if isinstance(value, BaseEstimator):
        ratio = getattr(value, "ratio", None)
        says_all = ratio is not None and repr(type(value)(ratio)) == repr(value)
        return f"{type(value).__name__}({ratio})" if says_all else " ".join(repr(value).split())
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


def _fresh(value: Any) -> Any:
    return clone(value) if isinstance(value, BaseEstimator) else value
