"""Measure how a detector grows and forgets: partial_fit against one fit of all images, and forget against fresh fits.

    python benchmarks/growth.py PATH/TO/mtd -o benchmarks/results/growth.md

The folder is Magnetic Tile Defects in MVTec AD layout. The good training images come in a random order: 100 images,
then the other ones in ten steps. Patch features are extracted once, with EfficientNet-Lite2 at 224 x 224 pixels, and
passed to the detectors as precomputed. After each step, the test images are scored. Test images are never added.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, list_images
from skpatchcore.calibration.conformal import conformal_threshold

RATE = 0.05
N_FIRST, N_STEPS = 100, 10
TITLES = {
    "grow": (
        "Growing in ten steps",
        "100 images, then the other ones in ten steps. `seconds` is the time of `partial_fit` without the network, "
        "while other programs ran. `interval` is the 95 % interval of the fraction of flagged good images. *scores "
        "kept* is the rule that keeps the old calibration scores as they are. The column with the test images' own 5 % "
        "is a recall at a threshold that needs the test images; it does not depend on the calibration.",
    ),
    "fit": ("One fit of all images", "`seconds` is the time of `fit` without the network, with calibration."),
    "orders": (
        "Batches and orders",
        "60 images, then 60 more at once, in batches of 10, and one by one, each in three orders. `radius` is the "
        "measured covering radius over all 120 images.",
    ),
    "forget": (
        "Forgetting random sets",
        "30 random sets of 2 to 20 of 200 images. `rows left` counts rows of the forgotten images in the bank and in "
        "the reserve. `radius / fresh` is the measured covering radius over the other images, divided by that of a "
        "fresh fit of these images. `without refill` is the same with `reserve=False`.",
    ),
    "thresholds": (
        "Thresholds after forgetting",
        "Sets of 1 to 10 of 100 images. `noise of a fit` is the standard deviation of the threshold of a fresh fit for "
        "three values of `random_state`.",
    ),
}
COLORS = {"radius": "#6a3d9a", "ratio": "#2a9d8f", "one fit": "#b2182b"}


def features_of(folder: Path, cache: Path) -> dict[str, np.ndarray]:
    """Return the patch features of the good training images, of the good and of the defective test images."""
    names = {"train": folder / "train" / "good", "good": folder / "test" / "good"}
    kinds = sorted(path for path in (folder / "test").iterdir() if path.name != "good")
    found = {}
    for name in ("train", "good", "bad"):
        path = cache / f"{name}.npy"
        if not path.exists():
            folders = kinds if name == "bad" else [names[name]]
            images = [image for own in folders for image in list_images(own)]
            extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=(224, 224), crop_size=None, verbose=1)
            np.save(path, extractor.fit_transform(images))
        found[name] = np.load(path, mmap_mode="r")
    return found


def new_detector(ratio: float, **parameters) -> PatchCoreDetector:
    """Return a detector with the promised rate of this benchmark."""
    return PatchCoreDetector(
        "precomputed", sampler=GreedyCoresetSampler(ratio), contamination=RATE, random_state=0, max_memory=None,
        **parameters,
    )  # fmt: skip


class Judge:
    """Scores the test images with detectors."""

    def __init__(self, features: dict[str, np.ndarray]):
        self.good, self.bad = features["good"], features["bad"]

    def row(self, detector: PatchCoreDetector, kept: np.ndarray | None = None) -> dict:
        """Return the measures of a detector. `kept` are unscaled calibration scores, for the rule that keeps them."""
        good, bad = detector.score_samples(self.good), detector.score_samples(self.bad)
        found = {
            "images": len(detector.training_image_indices_),
            "bank": len(detector.memory_bank_),
            "recall % at the test images' own 5 %": 100 * (bad < np.quantile(good, RATE)).mean(),
            "AUROC %": 100 * roc_auc_score(np.r_[np.zeros(len(good)), np.ones(len(bad))], -np.r_[good, bad]),
            **_at(detector.offset_, good, bad),
        }
        if kept is not None:
            offset = -conformal_threshold(-kept, RATE)
            found |= {f"{name}, scores kept": value for name, value in _at(offset, good, bad).items()}
        return found


def _at(offset: float, good: np.ndarray, bad: np.ndarray) -> dict:
    n_flagged = int((good < offset).sum())
    low, high = binomtest(n_flagged, len(good)).proportion_ci(0.95, method="wilson")
    return {
        "recall %": 100 * (bad < offset).mean(),
        "flagged good %": 100 * n_flagged / len(good),
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
    }


def grow(features: dict[str, np.ndarray], judge: Judge, ratio: float, growth: str) -> pd.DataFrame:
    """Return the measures after each step."""
    train = features["train"]
    order = np.random.default_rng(0).permutation(len(train))
    parts = [order[:N_FIRST], *np.array_split(order[N_FIRST:], N_STEPS)]
    detector, rows, kept = new_detector(ratio, growth=growth), [], np.zeros(0)
    for step, part in enumerate(parts):
        images = train[np.sort(part)]
        before = detector.score_samples(images) if step else np.zeros(0)
        start = time.perf_counter()
        detector.partial_fit(images)
        seconds = time.perf_counter() - start
        kept = detector.calibration_scores_.copy() if not step else np.r_[kept, before]
        rows.append({"step": step, "growth": growth, "seconds": seconds, **judge.row(detector, kept)})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def one_fit(features: dict[str, np.ndarray], judge: Judge, ratio: float) -> pd.DataFrame:
    """Return the measures of one fit of all images."""
    start = time.perf_counter()
    detector = new_detector(ratio).fit(np.asarray(features["train"]))
    row = {"step": N_STEPS, "growth": "one fit", "seconds": time.perf_counter() - start, **judge.row(detector)}
    print(row, detector.calibration_plan_, flush=True)
    return pd.DataFrame([row])


def covering_radius(detector: PatchCoreDetector, images: np.ndarray) -> float:
    """Return the covering radius of the bank, in the columns in which the sampler selects."""
    sampler = detector.sampler_
    matrix, _ = sampler._draw(sampler.n_features_in_, sampler.n_projections_, np.random.RandomState(sampler.seed_))
    bank = torch.from_numpy(detector.memory_bank_.astype(np.float64) @ matrix)
    worst = 0.0
    for image in images:
        rows = torch.from_numpy(image.reshape(-1, image.shape[-1]).astype(np.float64) @ matrix)
        squares = rows.square().sum(1)[:, None] + bank.square().sum(1)[None] - 2 * rows @ bank.T
        worst = max(worst, float(squares.amin(1).max()))
    return worst**0.5


def orders(features: dict[str, np.ndarray], ratio: float) -> pd.DataFrame:
    """Return covering radii after 60 images, and then 60 images in batches of several sizes and in several orders."""
    train = features["train"]
    some = np.asarray(train[np.random.default_rng(1).permutation(len(train))[:120]])
    rows = []
    fresh = new_detector(ratio, calibration=None).fit(some)
    rows.append({"how": "one fit", "bank": len(fresh.memory_bank_), "radius": covering_radius(fresh, some)})
    for growth in ("radius", "ratio"):
        begun = new_detector(ratio, calibration=None, growth=growth, reserve=False).fit(some[:60])
        rows.append({"how": "fit of 60", "bank": len(begun.memory_bank_), "radius": covering_radius(begun, some[:60])})
        for batch in (60, 10, 1):
            for seed in (0, 1, 2):
                order = 60 + np.random.default_rng(seed).permutation(60)
                detector = deepcopy(begun)
                for i in range(0, 60, batch):
                    detector.partial_fit(some[order[i : i + batch]])
                rows.append({
                    "growth": growth, "how": f"60, then by {batch}", "bank": len(detector.memory_bank_),
                    "radius": covering_radius(detector, some),
                })  # fmt: skip
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    return table.groupby(["growth", "how"], sort=False, dropna=False).agg(["min", "max"]).reset_index()


def forgetting(features: dict[str, np.ndarray], ratio: float, n_sets: int) -> pd.DataFrame:
    """Return how well banks cover the other images after random sets were forgotten, against fresh fits."""
    train = features["train"]
    some = np.asarray(train[np.random.default_rng(2).permutation(len(train))[:200]])
    detector = new_detector(ratio, calibration=None).fit(some)
    bare = new_detector(ratio, calibration=None, reserve=False).fit(some)
    rows = []
    for seed in range(n_sets):
        rng = np.random.default_rng(seed)
        n_gone = [2, 5, 10, 15, 20][seed % 5]
        gone = rng.choice(len(some), n_gone, replace=False)
        left = np.setdiff1d(np.arange(len(some)), gone)
        fresh = covering_radius(new_detector(ratio, calibration=None, reserve=False).fit(some[left]), some[left])
        filled, holes = deepcopy(detector), deepcopy(bare)
        start = time.perf_counter()
        filled.forget(gone)
        seconds = time.perf_counter() - start
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            holes.forget(gone)
        arrays = ("bank_image_indices_", "reserve_image_indices_")
        rows.append({
            "forgotten": n_gone, "rows left": sum(int(np.isin(getattr(filled, a), gone).sum()) for a in arrays),
            "removed rows": len(bare.memory_bank_) - len(holes.memory_bank_),
            "added rows": len(filled.memory_bank_) - len(holes.memory_bank_), "seconds": seconds,
            "radius / fresh": covering_radius(filled, some[left]) / fresh,
            "without refill": covering_radius(holes, some[left]) / fresh,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def thresholds(features: dict[str, np.ndarray], ratio: float, n_sets: int) -> pd.DataFrame:
    """Return thresholds after forget against those of fresh fits, and the noise of the folds."""
    train = features["train"]
    some = np.asarray(train[np.random.default_rng(3).permutation(len(train))[:100]])
    detector = new_detector(ratio).fit(some)
    rows = []
    for seed in range(n_sets):
        n_gone = [1, 2, 5, 10][seed % 4]
        gone = np.random.default_rng(seed).choice(len(some), n_gone, replace=False)
        left = np.setdiff1d(np.arange(len(some)), gone)
        offset = deepcopy(detector).forget(gone).offset_
        fits = [new_detector(ratio).set_params(random_state=i).fit(some[left]).offset_ for i in range(3)]
        rows.append({
            "forgotten": n_gone, "offset": offset, "fresh offsets, mean of 3 seeds": np.mean(fits),
            "difference %": 100 * (offset / np.mean(fits) - 1),
            "noise of a fit % (std)": 100 * np.std(fits, ddof=1) / -np.mean(fits),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    table = table.set_axis([" ".join(c).strip() if isinstance(c, tuple) else c for c in table.columns], axis=1)
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    cells = [
        ["" if value != value else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the measures against the number of training images."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for ax, name in zip(axes, ("AUROC %", "recall %", "flagged good %", "bank"), strict=True):
        for growth, rows in table.groupby("growth", sort=False):
            marker = {"marker": "*", "markersize": 12, "linestyle": "none"} if growth == "one fit" else {"marker": "."}
            label = growth if growth == "one fit" else f'growth="{growth}"'
            ax.plot(rows["images"], rows[name], color=COLORS[growth], label=label, **marker)
        ax.set(xlabel="training images", ylabel=name.replace("bank", "rows of the bank"))
    axes[2].axhline(100 * RATE, color="grey", linewidth=0.8, linestyle="--")
    axes[2].set_ylim(0)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure the parts that are asked for, and write all that have been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/growth.md"))
    parser.add_argument("--cache", type=Path, required=True, help="folder for the patch features")
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--parts", nargs="+", default=["grow", "fit", "orders", "forget", "thresholds"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="contamination=")
    args.cache.mkdir(parents=True, exist_ok=True)
    features = features_of(args.folder, args.cache)
    judge = Judge(features)
    steps = {
        "grow": lambda: pd.concat([grow(features, judge, args.ratio, growth) for growth in ("radius", "ratio")]),
        "fit": lambda: one_fit(features, judge, args.ratio),
        "orders": lambda: orders(features, args.ratio),
        "forget": lambda: forgetting(features, args.ratio, 30),
        "thresholds": lambda: thresholds(features, args.ratio, 4),
    }
    for part in args.parts:
        table = steps[part]()
        table.to_pickle(args.cache / f"{part}.pkl")
    tables = {
        part: pd.read_pickle(args.cache / f"{part}.pkl") for part in steps if (args.cache / f"{part}.pkl").exists()
    }
    if "forget" in tables:
        spread = {name: ["mean", "max"] for name in ("radius / fresh", "without refill")}
        means = dict.fromkeys(("removed rows", "added rows", "seconds"), "mean")
        grouped = tables["forget"].groupby("forgotten")
        tables["forget"] = grouped.agg({"rows left": "max", **means, **spread}).reset_index()
    if {"grow", "fit"} <= set(tables):
        draw(pd.concat([tables["grow"], tables["fit"]]), args.output.with_suffix(".png"))
    shapes = ", ".join(f"{len(some)} {name}" for name, some in features.items())
    lines = [
        "# Growing and forgetting\n",
        f"Made by `benchmarks/growth.py` with skpatchcore {skpatchcore.__version__}, torch {torch.__version__} on "
        f"{platform.machine()}, {torch.get_num_threads()} thread(s). Magnetic Tile Defects ({shapes}), "
        f"efficientnet_lite2 at 224 x 224, ratio {args.ratio:g}, promised rate {RATE:.0%}.\n",
        *[f"## {TITLES[name][0]}\n\n{TITLES[name][1]}\n\n{markdown(table)}\n" for name, table in tables.items()],
        "![Measures against the number of training images](growth.png)\n",
    ]
    args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
