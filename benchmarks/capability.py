"""Measure the coverage of a90/95, the curves of synthetic defects, and how they compare with real defects.

    python benchmarks/capability.py PATH/TO/data -o benchmarks/results/capability.md

The folder contains ``mtd`` (Magnetic Tile Defects in MVTec AD layout) and ``hazelnut_toy``. Four parts are measured:

1. Simulated hits and misses of a known curve: how often a90/95 is above the true a90.
2. Synthetic defects on the three textures of scikit-image.
3. Synthetic defects on good test images of the two data sets, and the probability of detection of their real defects.
4. The time to draw 200 defects, and the time to score the images, in one run.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import skpatchcore
from skpatchcore import (
    PatchCoreDetector,
    TorchFeatureExtractor,
    capability_of_defects,
    detection_capability,
    load_image_folder,
)
from skpatchcore.datasets import DEFECT_KINDS, TEXTURES, draw_defect, make_textures
from skpatchcore.evaluation import fit_pod
from skpatchcore.evaluation._trials import spread_sizes, transition

N_SIMULATIONS = 500
LOW, HIGH, MIDDLE = 1.0, 50.0, 5.0
# Training images of the magnetic tiles; the other good training images are not used.
N_TRAIN = 200


def table(frame: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    rows = [frame.columns, ["---"] * frame.shape[1], *frame.to_numpy(dtype=object)]
    return "\n".join("| " + " | ".join(str(value) for value in row) + " |" for row in rows)


def simulated(slope: float, n: int, is_adaptive: bool, n_groups: int, spread: float, seed: int) -> tuple[float, float]:
    """Return a90/95 of one simulation, and the true a90 without differences between groups."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) % n_groups if n_groups else None
    shifts = np.zeros(n) if groups is None else rng.normal(0, spread, n_groups)[groups]

    def hits(sizes: np.ndarray, start: int) -> np.ndarray:
        logits = slope * np.log(sizes / MIDDLE) + shifts[start : start + len(sizes)]
        return rng.random(len(sizes)) < 1 / (1 + np.exp(-logits))

    sizes = rng.permutation(spread_sizes(LOW, HIGH, n // 3 if is_adaptive else n, rng))
    found = hits(sizes, 0)
    if is_adaptive:
        low, high = transition(fit_pod(sizes, found), LOW, HIGH)
        more = rng.permutation(spread_sizes(low, high, n - n // 3, rng))
        found = np.concatenate([found, hits(more, len(sizes))])
        sizes = np.concatenate([sizes, more])
    return fit_pod(sizes, found, groups=groups).a90_95, true_a90(slope, spread if n_groups else 0.0)


def true_a90(slope: float, spread: float) -> float:
    """Return the size that is found with the probability 0.9 on average over the groups."""
    sizes = np.geomspace(LOW, 10 * HIGH, 4000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    logits = slope * np.log(sizes / MIDDLE)[:, None] + spread * nodes
    pod = (weights / weights.sum() / (1 + np.exp(-logits))).sum(axis=1)
    return float(np.interp(0.9, pod, sizes))


def coverage() -> pd.DataFrame:
    """Simulate hits and misses of known curves."""
    cases = [(4.0, 60, False, 0, 0.0), (8.0, 60, False, 0, 0.0), (4.0, 60, True, 0, 0.0), (4.0, 60, True, 15, 1.0)]
    rows = []
    for slope, n, is_adaptive, n_groups, spread in cases:
        results = np.array([simulated(slope, n, is_adaptive, n_groups, spread, i) for i in range(N_SIMULATIONS)])
        bounds, true = results[:, 0], results[0, 1]
        rows.append({
            "slope": slope, "trials": n, "sizes": "two stages" if is_adaptive else "even in log(size)",
            "images": f"{n_groups}, differing by {spread:g} logits" if n_groups else "independent",
            "true a90": f"{true:.2f}", "a90/95 covers a90": f"{(bounds >= true).mean():.1%}",
            "a90/95 infinite": f"{np.isinf(bounds).mean():.1%}", "median a90/95": f"{np.median(bounds):.2f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def shown(result: skpatchcore.evaluation.DetectionCapability) -> pd.DataFrame:
    """Return the results as a table for reading."""

    def size(value: float) -> str:
        return "below all tested" if np.isnan(value) else "not reached" if np.isinf(value) else f"{value:.1f}"

    frame = result.to_frame()
    columns = {
        "kind": frame["kind"], "size": frame["size"], "found": [f"{a} of {b}" for a, b in
                                                               zip(frame["n_found"], frame["n_trials"], strict=True)],
        "a90": frame["a90"].map(size), "a90/95": frame["a90_95"].map(size),
    }  # fmt: skip
    curves = result.curves.values()
    quartiles = [np.quantile(curve.sizes, [0.25, 0.75]) for curve in curves]
    pods = [curve.at(ends)[0] for curve, ends in zip(curves, quartiles, strict=True)]
    columns["POD at the quartiles of the tested sizes"] = [
        f"{pod[0]:.2f} at {ends[0]:.1f} px, {pod[1]:.2f} at {ends[1]:.1f} px"
        for pod, ends in zip(pods, quartiles, strict=True)
    ]
    return pd.DataFrame(columns)


def textures(n_trials: int) -> list[str]:
    """Measure synthetic defects on three textures."""
    parts = []
    for texture in TEXTURES:
        task = make_textures(texture)
        extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=None, crop_size=None)
        detector = PatchCoreDetector(extractor, random_state=0).fit(task.train_images, groups=task.train_groups)
        good = task.test_images[task.test_labels == 1]
        result = detection_capability(detector, good, n_trials=n_trials)
        parts += [f"**{texture}**, contrast 0.6, 128 × 128 px. {result.false_alarms()}", table(shown(result))]
        rises = all(curve.slope > 0 for curve in result.curves.values() if curve.hits.any() and not curve.hits.all())
        parts.append(f"All curves with hits and misses rise with the size: {'yes' if rises else 'no'}.")
    return parts


def real(folder: Path, n_trials: int) -> list[str]:
    """Compare synthetic with real defects on two data sets."""
    parts = []
    for name, side, contamination in (("hazelnut_toy", 256, 0.05), ("mtd", 128, 0.05)):
        data = load_image_folder(folder / name)
        train = np.asarray(data.train_images, object)
        if len(train) > N_TRAIN:
            train = train[np.sort(np.random.default_rng(0).permutation(len(train))[:N_TRAIN])]
        extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=side, crop_size=None)
        detector = PatchCoreDetector(extractor, contamination=contamination, random_state=0).fit(train)
        good = np.asarray(data.test_images, object)[data.test_labels == 1]
        result = detection_capability(detector, good, n_trials=n_trials)
        parts += [
            f"**{name}**, efficientnet_lite2 at {side} px, {len(train)} training images, promised false-alarm rate "
            f"{result.promised_rate:.2g}. {result.false_alarms()}",
            "Synthetic defects of contrast 0.6:",
            table(shown(result)),
        ]
        bad = np.flatnonzero(data.test_labels == -1)
        labelled = capability_of_defects(
            detector,
            np.asarray(data.test_images, object)[bad],
            np.asarray(data.test_masks, object)[bad],
            kinds=np.asarray(data.test_defects)[bad],
        )
        parts += ["Real defects, size from the masks:", table(shown(labelled))]
    return parts


def seconds(n: int = 200) -> pd.DataFrame:
    """Measure drawing and scoring of the same images, side by side."""
    rng = np.random.default_rng(0)
    image = (rng.normal(0.5, 0.05, (1024, 1024, 3)).clip(0, 1) * 255).astype(np.uint8)
    extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=256, crop_size=None)
    detector = PatchCoreDetector(extractor, calibration=0.5, random_state=0).fit([image[::-1], image, image[:, ::-1]])
    sizes = {kind: spread_sizes(0.5, 102, n, rng) if kind == "scratch" else spread_sizes(2, 512, n, rng)
             for kind in DEFECT_KINDS}  # fmt: skip
    drawing = scoring = 0.0
    for start in range(0, n, 20):
        begin = time.perf_counter()
        drawn = []
        for i in range(start, start + 20):
            kind = DEFECT_KINDS[i % len(DEFECT_KINDS)]
            drawn.append(draw_defect(image, kind, float(sizes[kind][i]), random_state=i)[0])
        drawing += time.perf_counter() - begin
        begin = time.perf_counter()
        detector.score_samples(drawn)
        scoring += time.perf_counter() - begin
    return pd.DataFrame(
        [{"images": f"{n} of 1024 × 1024 px, RGB", "drawing": f"{drawing:.1f} s", "scoring": f"{scoring:.1f} s",
          "ratio": f"{drawing / scoring:.2f}"}]
    )  # fmt: skip


def main() -> None:
    """Measure all parts and write the tables; each part is written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--parts", nargs="+", default=["coverage", "seconds", "real", "textures"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    titles = {
        "coverage": f"Coverage of a90/95 in {N_SIMULATIONS} simulations per row",
        "seconds": "Time to draw and to score, measured in turns",
        "real": "Synthetic and real defects",
        "textures": "Synthetic defects on three textures",
    }
    text = [
        "# Detection capability",
        f"Made by `benchmarks/capability.py`, skpatchcore {skpatchcore.__version__}, Python "
        f"{platform.python_version()}, {options.trials} trials per curve. Sizes are in pixels.",
    ]
    for part in options.parts:
        begin = time.perf_counter()
        measured = {
            "coverage": lambda: [table(coverage())],
            "seconds": lambda: [table(seconds())],
            "real": lambda: real(options.data, options.trials),
            "textures": lambda: textures(options.trials),
        }[part]()
        text += [f"## {titles[part]}", *measured]
        options.output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
