"""select_settings: choose the settings of a detector from images of good parts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils import check_random_state, get_tags

from skpatchcore._utils.labels import group_codes
from skpatchcore._utils.warning import warn_user
from skpatchcore.datasets.defects import DEFECT_KINDS, DEFECT_SIZES, SURFACE_KINDS
from skpatchcore.evaluation._part import part_of
from skpatchcore.evaluation._settings_params import prepared, settings_of, with_params
from skpatchcore.evaluation._settings_rule import Comparison, choose, compare, largest_rate, needed_errors
from skpatchcore.evaluation._settings_runs import SettingScores, fitted_on, score_settings, warm_caches
from skpatchcore.evaluation._settings_trials import planned_trials
from skpatchcore.evaluation._trials import DrawnImages, Trial, drawable_pixels, extent_of
from skpatchcore.evaluation.settings_grid import default_grid
from skpatchcore.evaluation.settings_result import SelectedSettings
from skpatchcore.images.containers import as_image_sequence, listed
from skpatchcore.images.reading import load_image
from skpatchcore.protocols import pixel_format_of

_LEAST_IMAGES, _LEAST_KINDS = 10, 2


def select_settings(
    detector: Any,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] | None,
    good_images: Any,
    *,
    groups: Any = None,
    cv: Any = 3,
    kinds: Sequence[str] = (*DEFECT_KINDS, *SURFACE_KINDS),
    n_defects: int = 50,
    contamination: float = 0.05,
    confidence: float = 0.9,
    ratio: float | None = 0.01,
    region: Any = "part",
    memory: Any = None,
    random_state: Any = 0,
    verbose: int = 0,
) -> SelectedSettings:
    """Choose the settings of a detector from images of good parts only, without a single real defect.

    Each setting is fitted on a part of the images. It then scores the other images, without and with synthetic defects
    of graded sizes. The criterion is the fraction of the defects that are found at a low false-alarm rate. The given
    setting is kept unless the evidence for another one is clear.

    Parameters
    ----------
    detector : detector
        Detector that reads images, such as :class:`~skpatchcore.PatchCoreDetector`, with the given setting: the one
        that is kept if no other setting is clearly better. It is not changed, and need not be fitted.
    grid : dict of str to sequence, list of such dicts, or None
        Values to try for each parameter, as for scikit-learn's ``GridSearchCV``, e.g.
        ``{"image_score": ["reweighted", "map-max"]}``. None uses :func:`~skpatchcore.evaluation.default_grid`.
    good_images : as for the detector's `fit`
        Images of good parts, at least 10. They can be the training images of the final fit.
    groups : array of shape (n_images,) or None, default=None
        Group of each image, as for the detector's `fit`. All images of a group are in the same fold, and the standard
        errors are those of groups.
    cv : int or splitter, default=3
        Number of folds, or a scikit-learn splitter whose test parts contain each image once. With more folds, the
        detectors are fitted on more images, which takes longer.
    kinds : sequence of str, default=all 11 kinds
        Kinds of synthetic defects, at least two, see :func:`~skpatchcore.datasets.draw_defect`. The comparison is more
        reliable with more kinds. Leave out only kinds that are impossible on these parts.
    n_defects : int, default=50
        Number of defects per kind.
    contamination : float in (0, 0.5], default=0.05
        False-alarm rate that matters. Settings are compared at all rates from ``1 / (n_images + 1)``, the smallest that
        the number of images can promise, to twice this rate, or to ``3 / (n_images + 1)`` if this is larger.
    confidence : float in (0, 1), default=0.9
        The given setting is kept unless the best setting finds more defects with this confidence, which takes the
        number of settings into account. Larger numbers keep the given setting more often.
    ratio : float or None, default=0.01
        Fraction of the patches in the memory banks of the comparison, if the detector has a sampler with a larger
        `ratio`, and the grid contains neither ``sampler`` nor ``sampler__ratio``. The fraction is raised if the bank
        would have fewer than 500 rows. None uses the detector's own ratio, which takes longer.
    region : {"part"}, array of shape (height, width), bool, or None, default="part"
        Pixels that may get a defect. ``"part"`` finds the part in each image that has a uniform background, and uses
        all pixels of other images. An array is the region of all images, which must have its size. None means all
        pixels. Pixels that the detector does not inspect never get a defect.
    memory : str, path, joblib.Memory or None, default=None
        Folder of the cache of the extractor, so that the network runs once per image and size. None uses a temporary
        folder, which is deleted at the end, unless the extractor has a cache of its own. The cache takes about 0.7 MB
        per image with the network efficientnet_lite2 and images of 256 × 256 pixels. There are the good images,
        `n_defects` images per kind, and 32 more images per kind for the first series.
    random_state : int, RandomState or None, default=0
        Seed of the folds, the defects and the standard errors.
    verbose : int, default=0
        If not 0, progress bars are shown.

    Returns
    -------
    SelectedSettings
        The ranked table of the settings, the chosen parameters, the reason, and the detector with these parameters. The
        detector is not fitted.

    Raises
    ------
    ImageError
        If an image cannot be read. The error names its index and path.
    ValueError
        If there are fewer than 10 images or too few groups, if the grid or another parameter is not valid, or if a
        setting cannot be fitted on the images. The last error names the setting. Parameters that describe how images
        are stored, such as ``extractor__channel_order``, cannot be compared.

    Warns
    -----
    UserWarning
        If settings have exactly the scores of the given setting, e.g. because they differ in thresholds only.

    Notes
    -----
    All settings score the same images with the same defects. The standard errors come from bootstrap samples of the
    images *and of the kinds of defects*: the kinds are a sample of all defects that a part can have. A setting that is
    better for a few kinds only, e.g. for coloured spots, has a large standard error and is not chosen.

    The best of many settings is often better by chance. The needed number of standard errors is therefore a quantile
    of the largest standardised difference between equal settings, from the same bootstrap samples. Among the clearly
    better settings that are at most one standard error below the best one, the one with the fewest changes is chosen.

    The choice concerns the ranking of images. It does not use the thresholds of the detectors, which are calibrated
    when the chosen detector is fitted. If there are labelled defects, measure them: use
    :func:`~skpatchcore.evaluate`, or ``GridSearchCV`` with :class:`~skpatchcore.OneClassSplit`.

    Images with three equal channels get grey defects.

    Examples
    --------
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor, select_settings
    >>> from skpatchcore.datasets import make_textures
    >>> good = make_textures("gravel").train_images[:12]
    >>> detector = PatchCoreDetector(TorchFeatureExtractor("efficientnet_lite0", image_size=64), random_state=0)
    >>> result = select_settings(detector, {"image_score": ["max", "map-max"]}, good, n_defects=4)
    >>> len(result.table), result.n_defects
    (3, 44)
    """
    images = as_image_sequence(listed(good_images))
    kinds = list(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    _check(detector, len(images), kinds, n_defects, contamination, confidence, ratio, region)
    rng = check_random_state(random_state)
    codes = None if groups is None else group_codes(groups, np.ones(len(images), bool))
    folds = _folds(cv, len(images), codes, rng)
    seed = int(rng.randint(2**31 - 1))
    rate = largest_rate(contamination, len(images))
    settings = settings_of(detector, default_grid(detector) if grid is None else grid)
    if any({"sampler", "sampler__ratio"} & set(params) for params in settings):
        ratio = None  # the grid states the ratios
    n_train = min(len(train) for train, _ in folds)
    with TemporaryDirectory(prefix="skpatchcore-") as folder:
        cache = folder if memory is None else memory
        detectors = [
            prepared(detector, params, ratio, image=images[0], n_images=n_train, memory=cache) for params in settings
        ]
        warm_caches(detectors, images, verbose)
        train, test = folds[0]
        fitted = fitted_on(detectors[0], images, train, {})
        regions, side, known = _regions(fitted, images, region)
        pixel_format = pixel_format_of(fitted)

        def draw(trials: Sequence[Trial]) -> DrawnImages:
            return DrawnImages(images, trials, regions, pixel_format)

        trials = planned_trials(
            lambda some: -fitted.score_samples(some),
            known[test],
            test,
            len(images),
            kinds,
            n_defects,
            side,
            rate,
            seed,
            draw,
        )
        warm_caches(detectors, draw(trials), verbose)
        scores = score_settings(detectors, settings, images, trials, folds, draw, verbose)
    _warn_of_equal_scores(settings, scores)
    comparison = compare(
        np.array([one.good for one in scores]),
        np.array([one.defects for one in scores]),
        np.array([kinds.index(trial.kind) for trial in trials]),
        np.array([trial.image for trial in trials]),
        rate,
        seed,
        codes,
    )
    changes = np.array([len(params) for params in settings])
    chosen = choose(comparison, changes, confidence)
    table, by_kind = _tables(settings, scores, comparison, changes, chosen, kinds)
    return SelectedSettings(
        table,
        by_kind,
        settings[chosen],
        _reason(settings, comparison, chosen, confidence),
        with_params(detector, settings[chosen]),
        len(images),
        len(trials),
        rate,
        pd.DataFrame(
            {
                "image": [trial.image for trial in trials],
                "kind": [trial.kind for trial in trials],
                "size": [trial.size for trial in trials],
                "contrast": [trial.contrast for trial in trials],
            }
        ),
        draw(trials),
    )


def _check(
    detector: Any,
    n_images: int,
    kinds: Sequence[str],
    n_defects: int,
    contamination: float,
    confidence: float,
    ratio: Any,
    region: Any,
) -> None:
    if not hasattr(detector, "extractor") or not get_tags(detector).input_tags.string:
        raise ValueError(
            f"{type(detector).__name__} does not read images, so no defects can be drawn. Use a detector such as "
            "PatchCoreDetector with an extractor whose tags state that it reads images: input_tags.string is True."
        )
    if n_images < _LEAST_IMAGES:
        raise ValueError(f"{n_images} good images: expected at least {_LEAST_IMAGES}.")
    if len(kinds) < _LEAST_KINDS or any(kind not in DEFECT_SIZES for kind in kinds):
        raise ValueError(f"kinds={kinds!r}: expected at least {_LEAST_KINDS} of {list(DEFECT_SIZES)}.")
    if isinstance(region, str) and region != "part":
        raise ValueError(f"region={region!r}: expected 'part', an array or None.")
    if not isinstance(n_defects, Integral) or n_defects < 1:
        raise ValueError(f"n_defects={n_defects!r}: expected a whole number of at least 1.")
    if not 0 < contamination <= 0.5:
        raise ValueError(f"contamination={contamination!r}: expected a fraction in (0, 0.5].")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: expected a fraction in (0, 1).")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio!r}: expected a fraction in (0, 1] or None.")


def _folds(
    cv: Any, n_images: int, codes: np.ndarray | None, rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training and test images of each fold."""
    if hasattr(cv, "split"):
        splitter = cv
    elif not isinstance(cv, Integral) or cv < 2:
        raise ValueError(f"cv={cv!r}: expected a whole number of at least 2, or a splitter.")
    elif codes is None:
        splitter = KFold(min(int(cv), n_images), shuffle=True, random_state=rng.randint(2**31 - 1))
    else:
        n_groups = len(np.unique(codes))
        if n_groups < 2:
            raise ValueError("all good images are in one group: expected at least two groups.")
        splitter = GroupKFold(min(int(cv), n_groups), shuffle=True, random_state=rng.randint(2**31 - 1))
    folds = list(splitter.split(np.zeros((n_images, 1)), groups=codes))
    tested = np.sort(np.concatenate([test for _, test in folds]))
    if not np.array_equal(tested, np.arange(n_images)):
        raise ValueError(f"cv={cv!r}: expected a splitter whose test parts contain each image once.")
    return folds


def _regions(fitted: Any, images: Sequence[Any], region: Any) -> tuple[list[np.ndarray | None], float, np.ndarray]:
    """Return the pixels of each image that may get a defect, the median length of the shorter side, and the scores."""
    finds_parts = isinstance(region, str)
    region = None if finds_parts or region is None else np.asarray(region, bool)
    pixel_format = pixel_format_of(fitted)
    regions, sides, scores = [], [], []
    for result in fitted.iter_results(images):
        assert result.anomaly_map is not None
        if region is not None and (region.shape != result.anomaly_map.shape or not region.any()):
            raise ValueError(
                f"region has shape {region.shape} and {int(region.sum())} True pixels, but image {result.index} has "
                f"shape {result.anomaly_map.shape}."
            )
        own = region
        if finds_parts:
            part = part_of(load_image(images[result.index], result.index, pixel_format=pixel_format))
            # A part outside the inspected pixels would leave no place for a defect.
            own = part if part is not None and (part & ~np.isnan(result.anomaly_map)).any() else None
        regions.append(drawable_pixels(result.anomaly_map, own, result.index))
        sides.append(min(extent_of(result.anomaly_map.shape, regions[-1])))
        scores.append(-result.score)
    return regions, float(np.median(sides)), np.array(scores)


def _warn_of_equal_scores(settings: Sequence[Mapping[str, Any]], scores: Sequence[SettingScores]) -> None:
    """Warn of settings whose scores are exactly those of the given setting."""
    given = scores[0]
    equal = [
        _text_of(params)
        for params, own in zip(settings[1:], scores[1:], strict=True)
        if np.array_equal(own.good, given.good) and np.array_equal(own.defects, given.defects)
    ]
    if equal:
        warn_user(
            f"{len(equal)} of {len(settings) - 1} settings have exactly the scores of the given setting, so the "
            f"comparison says nothing about them: {'; '.join(equal[:3])}{'; ...' if len(equal) > 3 else ''}."
        )


def _text_of(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in params.items()) or "as given"


def _tables(
    settings: Sequence[Mapping[str, Any]],
    scores: Sequence[SettingScores],
    comparison: Comparison,
    changes: np.ndarray,
    chosen: int,
    kinds: Sequence[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    gains, errors = comparison.gains_over(0)
    order = np.lexsort((changes, -comparison.found))
    table = pd.DataFrame(
        {
            "setting": [_text_of(settings[i]) for i in order],
            "chosen": order == chosen,
            "found": comparison.found[order],
            "gain": gains[order],
            "gain_se": errors[order],
            "n_changes": changes[order],
            "fit_seconds": [scores[i].fit_seconds for i in order],
            "ms_per_image": [scores[i].ms_per_image for i in order],
            "model_mb": [scores[i].model_bytes / 1e6 for i in order],
        }
    )
    for name in dict.fromkeys(name for params in settings for name in params):
        table[name] = pd.Series([settings[i].get(name, "as given") for i in order], dtype=object)
    by_kind = pd.DataFrame(comparison.by_kind[order], columns=list(kinds))
    by_kind.insert(0, "setting", table["setting"])
    return table, by_kind


def _reason(settings: Sequence[Mapping[str, Any]], comparison: Comparison, chosen: int, confidence: float) -> str:
    """Return why the setting is chosen, in words."""
    gains, errors = comparison.gains_over(0)

    def gain_of(setting: int) -> str:
        return f"{100 * gains[setting]:.1f} ± {100 * errors[setting]:.1f} percentage points more"

    best, needed = int(gains.argmax()), needed_errors(comparison, confidence)
    given = f"the given setting finds {comparison.found[0]:.0%} of the synthetic defects"
    if best == 0:
        return f"The given setting is kept: {given}, and no other setting finds more."
    if chosen == 0:
        return (
            f"The given setting is kept: {given}. The best other setting ({_text_of(settings[best])}) finds "
            f"{gain_of(best)}. With {len(settings)} settings, this may be chance: {needed:.1f} standard errors are "
            f"needed for a confidence of {confidence:.0%}."
        )
    text = (
        f"Chosen: {_text_of(settings[chosen])}. It finds {gain_of(chosen)}, and {given}. This is more than the "
        f"{needed:.1f} standard errors that are needed for a confidence of {confidence:.0%} with {len(settings)} "
        "settings."
    )
    if chosen != best:
        text += (
            f" {_text_of(settings[best])} finds {gain_of(best)}, but needs more changes, and the difference is within "
            "one standard error."
        )
    return text
