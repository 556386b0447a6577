"""Measure how many images a DriftMonitor needs to find simulated drifts, and how often it raises false alarms.

    python benchmarks/drift.py PATH/TO/mtd -o benchmarks/results/drift.md

The folder is Magnetic Tile Defects in MVTec AD layout, with the file ``by_tile_split.csv`` (columns ``file``, ``tile``)
beside ``train`` and ``test``. A part of the good images is held out as the stream. Each fit draws other training
images, and its stream is shown in several orders. The drifts change the pixels of the images of the stream. The
textures are those of the demonstration. Their views differ less from each other than the tiles do. Features are
extracted once. With ``--cache``, features and results are stored, and the parts can be computed by several processes
with ``--part``.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Iterator
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest

import skpatchcore
from skpatchcore import DriftMonitor, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.datasets import TEXTURES, make_textures
from skpatchcore.images.appearance import Appearance
from skpatchcore.images.reading import load_image
from skpatchcore.images.views import View
from skpatchcore.patches.embedding import EmbeddingLog, embeddings_of
from skpatchcore.patches.patches import Patches

ALPHAS = (0.01, 0.05)
BACKBONE, SIZE, RATIO = "efficientnet_lite2", 128, 0.003


def lighter(factor: float) -> Any:
    """Return a function that multiplies the brightness of an image."""
    return lambda image: np.clip(image * factor, 0, 255)


def blurred(sigma: float) -> Any:
    """Return a function that blurs an image."""
    return lambda image: gaussian_filter(image, (sigma, sigma, 0))


def shifted(image: np.ndarray) -> np.ndarray:
    """Return the image, moved by 10 pixels to the right. The border repeats the first column."""
    return np.pad(image, ((0, 0), (10, 0), (0, 0)), mode="edge")[:, :-10]


DRIFTS = {
    "none": lambda image: image,
    **{f"light {100 * (factor - 1):+.0f} %": lighter(factor) for factor in (0.95, 1.05, 0.9, 1.1, 0.8, 1.2)},
    **{f"blur, sigma {sigma} px": blurred(sigma) for sigma in (1, 2)},
    "shift, 10 px": shifted,
}


class Images(NamedTuple):
    """Grids of patch features, and appearances, of several images."""

    grids: np.ndarray
    appearances: np.ndarray

    def at(self, indices: np.ndarray) -> Images:
        """Return some of the images."""
        return Images(self.grids[indices], self.appearances[indices])

    def embeddings(self) -> np.ndarray:
        """Return the embeddings of the images."""
        return embeddings_of(Patches.from_features(self.grids.astype(np.float32)))


def log_of(embeddings: np.ndarray, appearances: np.ndarray) -> EmbeddingLog:
    """Return a log of known embeddings, which have at most 32 columns and are therefore not projected again."""
    whole, log = (1.0, 1.0), EmbeddingLog()
    views = [View(whole, (0, 0, 1, 1), whole, appearance=Appearance(*row)) for row in appearances]
    log.add(Patches(embeddings, np.ones((len(embeddings), 2), int), views), np.arange(len(embeddings)))
    return log


def extracted(extractor: TorchFeatureExtractor, images: list, drift: Any, cache: Path | None) -> Images:
    """Apply a drift to images, and extract their features, or read them from a file of an earlier call."""
    if cache is not None and cache.is_file():
        with np.load(cache) as known:
            return Images(known["grids"], known["appearances"])
    changed = [np.rint(drift(image.astype(np.float64))).astype(np.uint8) for image in images]
    parts = [(features.astype(np.float16), views) for features, views in extractor.iter_transform(changed)]
    appearances = np.array([view.appearance for _, views in parts for view in views])
    found = Images(np.concatenate([part for part, _ in parts]), appearances)
    if cache is not None:
        np.savez(cache, grids=found.grids, appearances=appearances)
    return found


def fitted(train: Images, calibration: Any, seed: int) -> PatchCoreDetector:
    """Return a detector that is fitted on extracted features."""
    sampler = GreedyCoresetSampler(RATIO)
    detector = PatchCoreDetector("precomputed", sampler=sampler, calibration=calibration, random_state=seed)
    detector.fit(train.grids.astype(np.float32))
    detector.appearances_ = train.appearances
    return detector


def first_alarms(detector: Any, scores: np.ndarray, log: EmbeddingLog | None, seed: int) -> dict:
    """Return the number of images until the alarm for each `alpha` (NaN: no alarm), and the channel of the alarm."""
    monitor = DriftMonitor(detector, alpha=ALPHAS[0], random_state=seed).update_scores(scores, log)
    found: dict = {"channel": monitor.alarm_channel_, "images": len(scores)}
    for alpha in ALPHAS:
        over = np.flatnonzero(monitor.log_evidence_ >= -np.log(alpha))
        found[alpha] = over[0] + 1 if len(over) else np.nan
    return found


def drift_cases(
    name: str, clean: Images, streams: dict[str, Images], n_train: int, n_fits: int, n_orders: int
) -> Iterator[dict]:
    """Yield the alarms of all streams. The images of the stream are the first ones of `clean`."""
    n_stream = len(streams["none"].grids)
    for seed in range(n_fits):
        rng = np.random.default_rng(seed)
        train = clean.at(n_stream + rng.permutation(len(clean.grids) - n_stream)[:n_train])
        detector = fitted(train, "leave-one-out", seed)
        orders = [rng.permutation(n_stream) for _ in range(n_orders)]
        for drift, stream in streams.items():
            known = [order[order < len(stream.grids)] for order in orders]
            yield from alarms_of(name, drift, detector, stream, known, seed)


def alarms_of(
    name: str, drift: str, detector: Any, stream: Images, orders: list[np.ndarray], seed: int
) -> Iterator[dict]:
    """Yield the alarms of one stream in several orders, with all channels and with the scores only."""
    scores, embeddings = detector.score_samples(stream.grids.astype(np.float32)), stream.embeddings()
    for order in orders:
        log = log_of(embeddings[order], stream.appearances[order])
        for kind, some in (("scores and embeddings", log), ("scores only", None)):
            yield {"data": name, "monitor": kind, "drift": drift, **first_alarms(detector, scores[order], some, seed)}


def tile_cases(clean: Images, tiles: np.ndarray, n_fits: int) -> Iterator[dict]:
    """Yield the alarms on images of tiles that are not among the training images."""
    for seed in range(n_fits):
        rng = np.random.default_rng(seed)
        names = rng.permutation(np.unique(tiles))
        is_train = np.isin(tiles, names[: len(names) // 2])
        detector = fitted(clean.at(rng.permutation(np.flatnonzero(is_train))), "leave-one-out", seed)
        some = clean.at(rng.permutation(np.flatnonzero(~is_train))[:240])
        yield from alarms_of("magnetic tiles", "new tiles", detector, some, [np.arange(len(some.grids))], seed)


def real_false_alarms(clean: Images, calibration: Any, n_splits: int, n_orders: int) -> Iterator[dict]:
    """Yield the alarms of exchangeable images: each split is streamed in many orders.

    With ``calibration="recalibrate"``, the order of all images that are not in the bank is permuted, so that each order
    draws other calibration images, too.
    """
    for split in range(n_splits):
        rng = np.random.default_rng(split)
        order = rng.permutation(len(clean.grids))
        n_bank = 200 if calibration == "recalibrate" else 400
        detector = fitted(clean.at(order[:n_bank]), None if calibration == "recalibrate" else calibration, split)
        rest = clean.at(order[n_bank:])
        scores, embeddings = detector.score_samples(rest.grids.astype(np.float32)), rest.embeddings()
        for number in range(n_orders):
            some, one = rng.permutation(len(scores)), copy(detector)
            if calibration == "recalibrate":
                held, some = some[:250], some[250:]
                one.calibration_scores_ = scores[held]
                one.embeddings_, one.appearances_ = embeddings[held], rest.appearances[held]
            yield first_alarms(one, scores[some], log_of(embeddings[some], rest.appearances[some]), number)


def synthetic_false_alarms(n_runs: int, n_images: int) -> Iterator[dict]:
    """Yield the alarms on normally distributed scores, embeddings and appearances, with 100 training images."""
    detector = PatchCoreDetector("precomputed", sampler=GreedyCoresetSampler(0.1), random_state=0)
    detector.fit(np.random.default_rng(0).random((10, 2, 2, 4)))
    for number in range(n_runs):
        rng = np.random.default_rng(number)
        one = copy(detector)
        one.calibration_scores_ = rng.normal(size=100)
        one.embeddings_, one.appearances_ = rng.normal(size=(100, 8)), rng.normal(size=(100, 5))
        log = log_of(rng.normal(size=(n_images, 8)), rng.normal(size=(n_images, 5)))
        yield first_alarms(one, rng.normal(size=n_images), log, number)


def late_drifts(n_runs: int) -> Iterator[dict]:
    """Yield the alarms if the scores grow by one standard deviation after a number of quiet images."""
    detector = PatchCoreDetector("precomputed", sampler=GreedyCoresetSampler(0.1), random_state=0)
    detector.fit(np.random.default_rng(0).random((10, 2, 2, 4)))
    detector.embeddings_ = None
    for n_quiet in (0, 100, 1000, 10000):
        for number in range(n_runs):
            rng = np.random.default_rng(number)
            detector.calibration_scores_ = rng.normal(size=200)
            scores = np.concatenate([rng.normal(size=n_quiet), rng.normal(-1, 1, 500)])
            found = first_alarms(detector, scores, None, number)
            yield {"quiet": n_quiet, **found}


def row_of_drift(keys: tuple, part: pd.DataFrame) -> list[str]:
    """Return the cells of one row of the table of drifts."""
    cells = []
    for alpha in ALPHAS:
        known = part[alpha].dropna()
        span = "" if known.empty else f"{known.median():.0f} ({known.min():.0f} - {known.max():.0f})"
        cells += [span, f"{part[alpha].isna().mean():.0%}"]
    channels = part["channel"].dropna()
    return [*keys, str(int(part["images"].median())), *cells, "" if channels.empty else channels.mode()[0]]


def row_of_false_alarms(name: str, found: list[dict]) -> list[str]:
    """Return the cells of one row of the table of false alarms."""
    table = pd.DataFrame(found)
    cells = []
    for alpha in ALPHAS:
        n = int(table[alpha].notna().sum())
        interval = binomtest(n, len(table)).proportion_ci(0.95)
        cells.append(f"{n / len(table):.2%} ({interval.low:.2%} - {interval.high:.2%})")
    return [name, str(len(table)), str(int(table["images"].median())), *cells]


def as_markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def main() -> None:
    """Measure all cases, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "drift.md")
    parser.add_argument("--fits", type=int, default=2)
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--cache", type=Path, help="folder of extracted features, which a later run reads")
    parser.add_argument("--textures", nargs="*", default=["brick"], choices=TEXTURES)
    parser.add_argument("--part", help="compute only this part, and store it in the folder of --cache")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="contamination=")
    begin = time.perf_counter()

    def note(text: str) -> None:
        print(f"{time.perf_counter() - begin:.0f} s: {text}", flush=True)

    def cached(name: str) -> Path | None:
        return None if options.cache is None else options.cache / f"{name}.npz"

    folder = load_image_folder(options.root)
    table = pd.read_csv(options.root / "by_tile_split.csv").set_index("file")["tile"]
    good = np.concatenate([folder.train_paths, folder.test_paths[folder.test_labels == 1]])
    good = np.random.RandomState(0).permutation(good)[: options.images]
    bad = np.random.RandomState(1).permutation(folder.test_paths[folder.test_labels == -1])[:80]
    extractor = TorchFeatureExtractor(BACKBONE, image_size=(SIZE, SIZE), crop_size=None)
    pixels = [255 * load_image(path, i) for i, path in enumerate(good)]
    n_stream = 240
    clean = extracted(extractor, pixels, DRIFTS["none"], cached("tiles"))

    def tile_drifts() -> list[dict]:
        streams = {
            name: extracted(extractor, pixels[:n_stream], drift, cached(f"tiles, {name}"))
            for name, drift in DRIFTS.items()
        }
        defective = [255 * load_image(path, i) for i, path in enumerate(bad)]
        streams["only defective images"] = extracted(extractor, defective, DRIFTS["none"], cached("defective"))
        return list(drift_cases("magnetic tiles", clean, streams, 400, options.fits, options.orders))

    def texture_drifts(texture: str) -> list[dict]:
        own_size = TorchFeatureExtractor(BACKBONE, image_size=None, crop_size=None)
        views = list(np.asarray(make_textures(texture, n_views=16, random_state=0).train_images))
        views = [views[i] for i in np.random.default_rng(0).permutation(len(views))]
        streams = {
            name: extracted(own_size, views[:80], drift, cached(f"{texture}, {name}")) for name, drift in DRIFTS.items()
        }
        whole = extracted(own_size, views, DRIFTS["none"], cached(texture))
        return list(drift_cases(texture, whole, streams, 99, options.fits, options.orders))

    n, tiles = options.runs, table[[Path(path).name for path in good]].to_numpy()
    exchangeable = {
        "recalibrate": "recalibrate",
        "calibration=0.2": 0.2,
        'calibration="leave-one-out"': "leave-one-out",
    }
    parts: dict[str, Any] = {
        "tiles": tile_drifts,
        "new tiles": lambda: list(tile_cases(clean, tiles, 2 * options.fits)),
        **{texture: partial(texture_drifts, texture) for texture in options.textures},
        "synthetic": lambda: list(synthetic_false_alarms(n, 500)),
        **{
            name: partial(lambda kind: list(real_false_alarms(clean, kind, options.fits, n // options.fits)), kind)
            for name, kind in exchangeable.items()
        },
        "late": lambda: list(late_drifts(options.fits * options.orders)),
    }
    results: dict[str, list[dict]] = {}
    for name in parts if options.part is None else [options.part]:
        known = None if options.cache is None else options.cache / (name.replace('"', "") + ".pickle")
        if known is None or not known.is_file():
            results[name] = parts[name]()
            if known is not None:
                pd.to_pickle(results[name], known)
        else:
            results[name] = pd.read_pickle(known)
        note(name)
    if options.part is not None:
        return
    found = [row for name in ("tiles", "new tiles", *options.textures) for row in results[name]]
    drifts = [
        row_of_drift(keys, part) for keys, part in pd.DataFrame(found).groupby(["data", "monitor", "drift"], sort=False)
    ]
    false_alarms = [
        row_of_false_alarms("synthetic" if name == "synthetic" else f"magnetic tiles, `{name}`", results[name])
        for name in ("synthetic", *exchangeable)
    ]
    late = pd.DataFrame(results["late"])
    of_late = []
    for quiet, part in late.groupby("quiet"):
        cells = []
        for alpha in ALPHAS:
            delays = part[alpha] - quiet
            cells.append(f"{delays.median():.0f} ({delays.min():.0f} - {delays.max():.0f})")
        of_late.append([str(quiet), *cells])
    lines = [
        "# Drift: images until the alarm, and false alarms",
        "",
        f"The backbone is {BACKBONE} (ImageNet weights from the package index). Tiles are resized to {SIZE}×{SIZE} "
        f"pixels, and textures have 128×128 pixels. The coreset ratio is {RATIO}, b = 9, and the calibration of the "
        'drifts is `"leave-one-out"`. The monitor has its default settings, except for `alpha`. The detectors are '
        f"fitted on 400 tiles or 99 views of a brick texture. There are {options.fits} fits on random training "
        "images, with "
        f"{options.orders} orders of the stream each. With new tiles, there are {2 * options.fits} splits.",
        "",
        "## Images until the alarm",
        "",
        "The drift begins with the first image. *None* is the same stream without a drift. *New tiles*: the training "
        "images show one half of the tiles, and the stream shows the other half. *Only defective images* is a stream "
        "without good images. Each cell has the median (minimum - maximum) over the runs with an alarm, and the "
        "fraction of runs that ended without an alarm.",
        "",
        *as_markdown(
            ["data", "monitor", "drift", "images", "alpha = 1 %", "no alarm", "alpha = 5 %", "no alarm", "channel"],
            drifts,
        ),
        "",
        "## False alarms on exchangeable images",
        "",
        "Fraction of runs with an alarm at any image, and its exact 95 % interval. *Synthetic*: normally distributed "
        "scores, embeddings, brightness and contrast. *Recalibrate*: each run draws 250 calibration images and 250 new "
        f"images from images that are not in the bank. The other rows have {options.fits} splits into 400 training "
        "images and 300 new images, each streamed in many orders; runs of one split are not independent.",
        "",
        *as_markdown(["data", "runs", "images", "alpha = 1 %", "alpha = 5 %"], false_alarms),
        "",
        "## Late drifts",
        "",
        "Synthetic scores, 200 calibration scores, scores only. After a number of quiet images, the anomaly scores "
        "grow by one standard deviation. Images from there to the alarm: median (minimum - maximum).",
        "",
        *as_markdown(["quiet images", "alpha = 1 %", "alpha = 5 %"], of_late),
        "",
        f"skpatchcore {skpatchcore.__version__}, {platform.machine()}.",
        "",
        "Made by `python benchmarks/drift.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
