"""Measure training sets that hold defective images: `suspect_share`, the warning of `fit`, and `training_report`.

    python benchmarks/unclean.py PATH/TO/data --cache CACHE -o benchmarks/results/unclean.md

The folder contains ``mtd`` (Magnetic Tile Defects in MVTec AD layout) and ``hazelnut_toy``. Defective images are added
to the good training images, so that they are 0, 5, 10 or 20 % of the training set. The test images are all other good
and defective images. Results are stored in the folder CACHE, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from skpatchcore import (
    GreedyCoresetSampler,
    PatchCoreDetector,
    SuspectImageWarning,
    TorchFeatureExtractor,
    load_image_folder,
)
from skpatchcore.calibration.conformal import conformal_threshold
from skpatchcore.calibration.tails import anomalous_scores
from skpatchcore.datasets import TEXTURES, make_textures

BACKBONE, SIDE, RATIO = "efficientnet_lite2", 224, 0.01
NOISES = (0.0, 0.1, 0.05, 0.2)
SHARES = (None, 0.01, 0.02)
N_TRAIN = {"hazelnut_toy": 28, "mtd": 150}
RATE, N_FOLDS = 0.05, 5


def split(root: Path, name: str, noise: float, seed: int) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Return training images, which of them are defective, test images, and which of them are defective."""
    rng, folder = np.random.default_rng(seed), load_image_folder(root / name)
    is_bad = folder.test_labels == -1
    good, bad = (rng.permutation(np.asarray(some, str)) for some in (folder.train_paths, folder.test_paths[is_bad]))
    n_mixed = round(noise / (1 - noise) * min(N_TRAIN[name], len(good)))
    train = np.array([*good[: N_TRAIN[name]], *bad[:n_mixed]])
    order = rng.permutation(len(train))
    test = [*np.asarray(folder.test_paths[~is_bad], str), *bad[n_mixed:]]
    n_good = int((~is_bad).sum())
    return list(train[order]), (order >= len(train) - n_mixed), test, np.arange(len(test)) >= n_good


def detector(memory: str | None, share: float | None, calibration: Any = N_FOLDS) -> PatchCoreDetector:
    """Return the detector that is measured."""
    extractor = TorchFeatureExtractor(BACKBONE, image_size=(SIDE, SIDE), memory=memory)
    return PatchCoreDetector(
        extractor, sampler=GreedyCoresetSampler(RATIO), contamination=RATE, suspect_share=share,
        calibration=calibration, random_state=0,
    )  # fmt: skip


def measured(root: Path, cache: Path, name: str, noise: float, share: float | None, seed: int) -> dict[str, Any]:
    """Fit on an unclean training set, and return what is measured."""
    train, train_bad, test, test_bad = split(root, name, noise, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = detector(str(cache / "features"), share).fit(train)
    scores, calibration = -fitted.score_samples(test), -fitted._scores_of_training_images()
    flagged = anomalous_scores(calibration)
    is_flagged = scores > -fitted.offset_

    def rates(values: np.ndarray) -> list[float]:
        is_above = scores > conformal_threshold(values, RATE)
        return [float(is_above[test_bad].mean()), float(is_above[~test_bad].mean())]

    found = fitted.training_report()
    listed, n_bad = train_bad[found["image"].to_numpy()], int(train_bad.sum())
    by_distance = train_bad[found.sort_values("distance", ascending=False)["image"].to_numpy()]
    return {
        "data": name, "noise": noise, "share": share, "seed": seed, "n_bad": n_bad, "n_train": len(train),
        "auroc": roc_auc_score(test_bad, scores),
        "rates": [float(is_flagged[test_bad].mean()), float(is_flagged[~test_bad].mean())],
        "rates_good": rates(calibration[~train_bad]),
        "first_n": float(listed[:n_bad].mean()) if n_bad else None, "first_10": int(listed[: min(10, n_bad)].sum()),
        "first_n_distance": float(by_distance[:n_bad].mean()) if n_bad else None,
        "flagged": len(flagged), "flagged_bad": int(train_bad[flagged].sum()),
        "warned": any(issubclass(w.category, SuspectImageWarning) for w in caught),
    }  # fmt: skip


def pools(root: Path) -> dict[str, tuple[list[Any], list[Any], list[tuple[int, int, int]]]]:
    """Return good and defective images by name of the data, with sizes, numbers of defects and numbers of fits."""
    found: dict[str, Any] = {}
    for name in N_TRAIN:
        folder = load_image_folder(root / name)
        is_bad = folder.test_labels == -1
        good = [*map(str, folder.train_paths), *map(str, folder.test_paths[~is_bad])]
        sizes = [(20, 0, 10), (60, 0, 10), (120, 0, 5), (60, 3, 3), (120, 6, 3)]
        found[name] = (
            good,
            [*map(str, folder.test_paths[is_bad])],
            sizes if name == "mtd" else [(28, 0, 8), (28, 2, 8)],
        )
    for name in TEXTURES:
        task = make_textures(name)
        good = [*task.train_images, *task.test_images[task.test_labels == 1]]
        found[name] = (good, [*task.test_images[task.test_labels == -1]], [(60, 0, 4), (60, 3, 4)])
    return found


def named(cache: Path, good: list[Any], bad: list[Any], n: int, n_bad: int, seed: int) -> list[int]:
    """Return the number of images that the warning of a fit names, and how many of them are defective."""
    rng = np.random.default_rng(seed)
    train = [good[i] for i in rng.permutation(len(good))[: n - n_bad]]
    train += [bad[i] for i in rng.permutation(len(bad))[:n_bad]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = detector(str(cache / "features"), None, 8).fit(train)
    return [len(fitted.suspect_image_indices_), int((fitted.suspect_image_indices_ >= n - n_bad).sum())]


def named_of_all(root: Path, cache: Path) -> list[str]:
    """Return the table of the warnings."""
    lines = ["## The warning of fit, with 8 folds", "", "| data | images | defective | fits | fits with a warning | "
             "images named | of them defective |", "|---" * 7 + "|"]  # fmt: skip
    for name, (good, bad, sizes) in pools(root).items():
        for n, n_bad, n_fits in sizes:
            found = []
            for seed in range(n_fits):
                key, given = f"named-{name}-{n}-{n_bad}-{seed}", (cache, good, bad, n, n_bad, seed)
                found.append(stored(cache, key, lambda given=given: named(*given)))
            counts = np.array(found)
            lines.append(
                f"| {name} | {n} | {n_bad} | {n_fits} | {np.count_nonzero(counts[:, 0])} | {counts[:, 0].sum()} | "
                f"{counts[:, 1].sum()} of {n_bad * n_fits} |"
            )
    return [*lines, ""]


def timed(root: Path, share: float | None) -> None:
    """Print the seconds and the peak memory of a fit without a cache; run in a process of its own."""
    train = split(root, "mtd", 0.05, 0)[0]
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector(None, share, "auto").fit(train)
    print(json.dumps([time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))


def stored(cache: Path, key: str, compute: Any) -> Any:
    """Return a stored result, or compute and store it."""
    path = cache / f"{key}.json"
    if not path.exists():
        value = compute()
        path.write_text(json.dumps(value))
        print(key, value, flush=True)
    return json.loads(path.read_text())


def page(table: pd.DataFrame, times: dict[str, list[float]], warned: list[str]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Training sets with defective images", "",
        f"`benchmarks/unclean.py`; {BACKBONE}, {SIDE} pixels, ratio {RATIO:g}, {N_FOLDS} calibration folds, "
        f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} thread(s), torch {torch.__version__}. Means over "
        f"random training sets; AUROC and rates in percent; the promised false-positive rate is {RATE:.0%}.", "",
        "Each pair of rates is the recall and the fraction of good test images that is flagged: with the threshold of "
        "`fit`; calibrated on the good training images only. Report: fraction of defective images among its first n "
        "rows, if n are defective, and their number among the first 10.", "",
    ]  # fmt: skip
    for name, some in table.groupby("data"):
        clean = some[(some["noise"] == 0) & some["share"].isna()]["auroc"].mean()
        lines += [
            f"## {name}: {N_TRAIN[name]} good images and defective ones, {some['seed'].nunique()} training sets", "",
            "| defective | suspect_share | AUROC | loss against clean | rates | good only | "
            "report: first n | first 10 | warnings | named images, of them defective |",
            "|---" * 10 + "|",
        ]  # fmt: skip
        for (noise, share), rows in some.assign(share=some["share"].fillna(0.0)).groupby(["noise", "share"]):
            pairs = [np.mean(rows[name].tolist(), axis=0) * 100 for name in ("rates", "rates_good")]
            shown = " | ".join(f"{recall:.1f}, {alarms:.1f}" for recall, alarms in pairs)
            auroc = rows["auroc"].mean()
            first = "" if noise == 0 else f"{rows['first_n'].astype(float).mean():.0%}"
            ten = "" if noise == 0 else f"{rows['first_10'].mean():.1f} of {min(10, rows['n_bad'].max())}"
            named = f"{rows['warned'].sum()} of {len(rows)} | {rows['flagged'].sum()}, {rows['flagged_bad'].sum()}"
            lines.append(
                f"| {noise:.0%} | {share or 'None'} | {auroc * 100:.1f} | {(clean - auroc) * 100:.1f} | {shown} | "
                f"{first} | {ten} | {named} |"
            )
        lines.append("")
    lines += warned
    if times:
        lines += ["## Time and memory of a fit on 158 images of mtd, without a cache", ""]
        lines += ["| suspect_share | seconds | peak memory (MB) |", "|---|---|---|"]
        lines += [f"| {share} | {seconds:.0f} | {memory:.0f} |" for share, (seconds, memory) in times.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", default=None, help="print the time of one fit with this share, and stop")
    options = parser.parse_args()
    if options.time is not None:
        timed(options.data, None if options.time == "None" else float(options.time))
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):
        for name in N_TRAIN:
            for noise in NOISES:
                for share in SHARES:
                    key = f"{name}-{noise:g}-{share}-{seed}"
                    given = (options.data, options.cache, name, noise, share, seed)
                    rows.append(stored(options.cache, key, lambda given=given: measured(*given)))
        options.output.write_text(page(pd.DataFrame(rows), {}, []))
    times = {}
    for share in ("None", "0.01"):
        command = [
            sys.executable,
            __file__,
            str(options.data),
            "--cache",
            str(options.cache),
            "-o",
            "x",
            "--time",
            share,
        ]

        def run(command: list[str] = command) -> Any:
            return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout)

        times[share] = stored(options.cache, f"time-{share}", run)
    options.output.write_text(page(pd.DataFrame(rows), times, named_of_all(options.data, options.cache)))


if __name__ == "__main__":
    main()
