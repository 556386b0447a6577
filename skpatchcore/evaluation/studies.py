"""Many evaluations that belong together: few training images (section 4.5), and the choices of Figures 4 and 5."""

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
from skpatchcore.features._backbones import default_layers
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
        Its name.
    name : str
        Of what is tried, fit for a folder.
    settings : dict
        The same, one column of a table each.
    detector : estimator
        Not fitted.
    dataset : ImageFolder or TextureTask
        What it learns from and judges.
    """

    category: str
    name: str
    settings: dict[str, Any]
    detector: Any
    dataset: Any


def plain_runs(detector: Any, categories: Mapping[str, Any]) -> Iterator[Run]:
    """Yield one run a category, on all its images."""
    for category, dataset in categories.items():
        yield Run(category, "all", {}, detector, dataset)


def low_shot_runs(
    detector: Any, categories: Mapping[str, Any], shots: Sequence[int], n_repeats: int, random_state: int
) -> Iterator[Run]:
    """Yield runs on a few training images of each category, drawn anew for each repetition.

    The draws of one repetition are nested: five images are two of before and three more.
    """
    most = max((len(dataset.train_images) for dataset in categories.values()), default=0)
    if not shots or min(shots) < 1 or min(shots) > most:
        raise ValueError(f"shots={list(shots)}: expected numbers from 1 to {most}, the most images of a category.")
    for category, dataset in categories.items():
        number = zlib.crc32(
            category.encode("utf-8", "surrogateescape")
        )  # the draws are the same whatever other categories there are
        for repeat in range(n_repeats):
            order = np.random.default_rng([random_state, number, repeat]).permutation(len(dataset.train_images))
            for n in shots:
                if n <= len(order):
                    some = _with_train(dataset, np.sort(order[:n]))
                    settings = {"shots": n, "repeat": repeat}
                    yield Run(category, f"shots-{n}-{repeat}", settings, _for_few(detector, some), some)


def ablation_runs(detector: Any, categories: Mapping[str, Any], grid: Any) -> Iterator[Run]:
    """Yield a run for each setting of a grid, as :class:`~sklearn.model_selection.ParameterGrid` takes it."""
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
    """Return what is tried under one of the names of `ABLATIONS`.

    Parameters
    ----------
    name : {"patch_size", "layers", "stride", "sampler"}
        Of the paper's Figure 4 (patch size, layers), section 4.4.3 (stride) and Figure 5 (sampler and ratio).
    detector : estimator
        Whose backbone's layers are tried.

    Returns
    -------
    dict
        For :func:`ablation`.

    Raises
    ------
    ValueError
        If there is no such name.
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
    verbose: int = 0,
) -> pd.DataFrame:
    """Evaluate a detector that learns from a few images only (section 4.5 of the paper).

    Parameters
    ----------
    detector, dataset
        As for :func:`~skpatchcore.evaluate`. With ``TorchFeatureExtractor(memory=...)`` the network sees each image
        once.
    shots : sequence of int, default=(1, 2, 5, 10, 20, 50)
        Numbers of training images; those that a category does not have are left out.
    n_repeats : int, default=3
        Draws of the images.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    random_state : int, default=0
        Seeds the draws.
    verbose : int, default=0
        1 shows progress.

    Returns
    -------
    DataFrame
        One row a category, number and draw: ``category``, ``shots``, ``repeat``, and the columns of
        :func:`~skpatchcore.evaluate`.

    Raises
    ------
    ValueError, ImageError, WeightsError, FileNotFoundError
        As :func:`~skpatchcore.evaluate`.

    Notes
    -----
    Where the images are too few for the detector's calibration, as one always is, there is no threshold, and the
    columns of decisions are NaN. An ensemble can't do without: it needs three images at least.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation.studies import low_shot_curve
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> low_shot_curve(detector, make_textures("brick"), [2, 5], n_repeats=1)["shots"].tolist()
    [2, 5]
    """
    runs = low_shot_runs(detector, as_categories(dataset), shots, n_repeats, random_state)
    return _table(list(runs), resolution, verbose)


def ablation(
    detector: Any, dataset: Any, grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]], *,
    resolution: str = "own", verbose: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate a detector with one setting after another: the paper's Figures 4 and 5 for one's own data.

    Parameters
    ----------
    detector, dataset
        As for :func:`~skpatchcore.evaluate`. With ``TorchFeatureExtractor(memory=...)`` the network sees each image
        once for each choice of layers.
    grid : dict or list of dict
        Parameters and what is tried, as :class:`~sklearn.model_selection.ParameterGrid` takes it.
        :func:`named_grid` has those of the paper.
    resolution : {"own", "seen"}, default="own"
        As for :func:`~skpatchcore.evaluate`.
    verbose : int, default=0
        1 shows progress.

    Returns
    -------
    DataFrame
        One row a category and setting: ``category``, a column for each parameter (as text where it is an estimator or
        a sequence), and the columns of :func:`~skpatchcore.evaluate`.

    Raises
    ------
    ValueError, ImageError, WeightsError, FileNotFoundError
        As :func:`~skpatchcore.evaluate`.

    Notes
    -----
    It compares settings by test images and their labels, as the paper does. To choose one for use, search with
    :class:`~skpatchcore.OneClassSplit` on images that are not those you report.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.datasets import make_textures
    >>> from skpatchcore.evaluation.studies import ablation
    >>> extractor = TorchFeatureExtractor("efficientnet_lite0", image_size=None, crop_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0)
    >>> table = ablation(detector, make_textures("brick", n_views=2), {"extractor__patch_size": [1, 3]})
    >>> table["extractor__patch_size"].tolist()
    [1, 3]
    """
    return _table(list(ablation_runs(detector, as_categories(dataset), grid)), resolution, verbose)


def run_quietly(run: Run, resolution: str) -> tuple[Any, Any]:
    """Return what :func:`~skpatchcore.evaluation.evaluate_category` does, without warnings of few images."""
    with warnings.catch_warnings():
        if "shots" in run.settings:  # that they are few is what is studied
            warnings.simplefilter("ignore", UserWarning)
        return evaluate_category(run.detector, run.category, run.dataset, resolution)


def _table(runs: list[Run], resolution: str, verbose: int) -> pd.DataFrame:
    for run in runs:
        check_before(run.detector, {run.category: run.dataset}, resolution)
    rows = []
    with progress_bar(len(runs), "evaluating", "run", verbose) as bar:
        for run in runs:
            result, _ = run_quietly(run, resolution)
            rows.append({"category": escape_name(run.category), **run.settings, **result.row})
            bar.update(1)
    return pd.DataFrame(rows)


def _with_train(dataset: Any, images: np.ndarray) -> Any:
    """Return the data set with some of its training images."""
    name = "train_paths" if hasattr(dataset, "train_paths") else "train_images"
    groups = None if dataset.train_groups is None else dataset.train_groups[images]
    return replace(dataset, **{name: getattr(dataset, name)[images], "train_groups": groups})


def _for_few(detector: Any, dataset: Any) -> Any:
    """Return the detector, without calibration where there are too few images, or parts, to calibrate by."""
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
    """Return what a table shows of a parameter's value."""
    if isinstance(value, BaseEstimator):
        ratio = getattr(value, "ratio", None)
        says_all = ratio is not None and repr(type(value)(ratio)) == repr(value)
        return f"{type(value).__name__}({ratio})" if says_all else " ".join(repr(value).split())
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


def _fresh(value: Any) -> Any:
    return clone(value) if isinstance(value, BaseEstimator) else value
