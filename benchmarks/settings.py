"""Measure settings on labelled data, and how well `select_settings` chooses among them without labels.

    python benchmarks/settings.py PATH/TO/data --cache CACHE -o benchmarks/results/settings.md

The folder contains ``mtd`` (Magnetic Tile Defects in MVTec AD layout, with ``by_tile_split.csv``) and ``hazelnut_toy``.
The other data sets are the textures of scikit-image with synthetic defects of other parameters than those of
`select_settings`, and three surfaces with transplanted real defects of mtd (see ``_transplants.py``).

For each data set:

1. Each setting is fitted on the training images, and measured on the labelled test images.
2. `select_settings` chooses a setting from the training images only.
3. Rank correlations and regrets compare both.

Results are stored in the folder CACHE, so that an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _transplants import metal_part, smooth_surface, transplanted
from PIL import Image
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid

from skpatchcore import (
    GreedyCoresetSampler,
    PatchCoreDetector,
    PatchWhitening,
    TorchFeatureExtractor,
    load_image_folder,
    select_settings,
)
from skpatchcore.calibration.conformal import conformal_threshold
from skpatchcore.datasets import TEXTURES, make_textures, read_mask
from skpatchcore.metrics import aupro_score

SIDE = 224
N_TRAIN = 150
N_BOOT = 1000
N_TIMED = 60
N_FOLDS = 10
FINE, MIDDLE = ("stage2", "stage3", "stage5"), ("stage3", "stage4", "stage5")
BOTH = [None, PatchWhitening()]
SCORES = ["reweighted", "map-max"]
GRID: list[dict[str, list[Any]]] = [
    {"transformer": BOTH, "image_score": [*SCORES, "max", 0.01]},
    {"extractor__layers": [FINE], "extractor__stride": [2], "transformer": BOTH, "image_score": SCORES},
    {"extractor__layers": [MIDDLE], "transformer": BOTH, "image_score": SCORES},
    {"extractor__patch_size": [5], "transformer": BOTH, "image_score": SCORES},
    {"transformer": [PatchWhitening(0.01), PatchWhitening(n_components=64)], "image_score": SCORES},
]


class Data:
    """A data set: good training images, test images, labels (True = defective) and masks."""

    def __init__(self, train: Any, test: Any, bad: Any, masks: Any):
        self.train, self.test, self.bad, self.masks = list(train), list(test), np.asarray(bad, bool), list(masks)


def of_mtd(root: Path, by_tile: bool) -> Data:
    """Return Magnetic Tile Defects with 150 random training images."""
    folder, rng = load_image_folder(root / "mtd"), np.random.default_rng(0)
    bad = folder.test_labels == -1
    train, good = np.array(folder.train_paths), np.array(folder.test_paths[~bad])
    if by_tile:
        table = pd.read_csv(root / "mtd" / "by_tile_split.csv")
        places = {Path(path).name: path for path in [*train, *good]}
        train, good = (np.array([places[n] for n in table["file"][table["split"] == s]]) for s in ("train", "test"))
    train = rng.permutation(train)[:N_TRAIN]
    masks = [None] * len(good) + list(folder.test_masks[bad])
    return Data(train, [*good, *folder.test_paths[bad]], [False] * len(good) + [True] * int(bad.sum()), masks)


def of_hazelnut(root: Path) -> Data:
    """Return hazelnut_toy."""
    folder = load_image_folder(root / "hazelnut_toy")
    return Data(folder.train_paths, folder.test_paths, folder.test_labels == -1, folder.test_masks)


def of_texture(name: str) -> Data:
    """Return a texture of scikit-image."""
    task = make_textures(name)
    return Data(task.train_images, task.test_images, task.test_labels == -1, task.test_masks)


def of_transplants(root: Path, name: str) -> Data:
    """Return a surface with transplanted real defects of mtd."""
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"kinds": ("blowhole", "crack", "fray"), "scales": (0.3, 0.8), "strengths": (0.5, 1.0)}
    if name == "metal part":
        images = [metal_part(rng) for _ in range(220)]
        train, good = images[:120], images[120:]
        options["on_ring"] = True
    elif name == "smooth surface":
        images = [smooth_surface(rng) for _ in range(220)]
        train, good = images[:120], images[120:]
        options.update(kinds=("crack", "blowhole"), scales=(0.35, 1.0), strengths=(0.1, 0.6))
    else:
        folder = load_image_folder(root / "hazelnut_toy")
        paths = [*folder.train_paths, *folder.test_paths[folder.test_labels == 1]]
        images = [np.asarray(Image.open(p).convert("RGB").resize((SIDE, SIDE), 2), np.float32) / 255 for p in paths]
        train, good = images[:19], images[19:]
        options.update(scales=(0.35, 1.0), strengths=(0.25, 0.8))
    bad, masks = transplanted(good, root / "mtd", n=150, seed=1, **options)
    return Data(train, [*good, *bad], [False] * len(good) + [True] * len(bad), [None] * len(good) + masks)


def data_sets(root: Path) -> dict[str, Any]:
    """Return functions that read each data set, by name."""
    sets = {
        "mtd, random": lambda: of_mtd(root, False),
        "mtd, by tile": lambda: of_mtd(root, True),
        "hazelnut_toy": lambda: of_hazelnut(root),
    }
    sets.update({name: (lambda name=name: of_texture(name)) for name in TEXTURES})
    for name in ("metal part", "smooth surface", "hazelnut"):
        sets[f"{name} (transplants)"] = lambda name=name: of_transplants(root, name)
    return sets


def given_detector(memory: Path) -> PatchCoreDetector:
    """Return the detector with the given setting."""
    extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=(SIDE, SIDE), memory=str(memory))
    return PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(0.01), calibration=N_FOLDS, random_state=0)


def named(params: dict[str, Any]) -> str:
    """Return a short name of a setting."""
    layers = {FINE: "stages 2+3+5", MIDDLE: "stages 3+4+5"}
    parts = [layers.get(params.get("extractor__layers"), "stages 3+5")]
    if params.get("extractor__patch_size", 3) != 3:
        parts.append(f"patch {params['extractor__patch_size']}")
    if (step := params.get("transformer")) is not None:
        parts.append("whitened" + (f" {step.shrinkage:g}" if step.shrinkage != 0.1 else "")
                     + (f" to {step.n_components}" if step.n_components else ""))  # fmt: skip
    return ", ".join([*parts, str(params.get("image_score", "reweighted"))])


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % interval of bootstrap values."""
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def measured(detector: PatchCoreDetector, data: Data) -> dict[str, Any]:
    """Fit a detector on the training images, and measure it on the labelled test images."""
    for _ in detector.extractor.fit(data.train[:1]).iter_transform([*data.train, *data.test]):
        pass  # fills the cache, so that times do not include the network
    begin = time.perf_counter()
    detector.fit(data.train)
    fit_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    detector.score_samples(data.test[:N_TIMED])
    ms = 1000 * (time.perf_counter() - begin) / len(data.test[:N_TIMED])
    scores, maps = detector.score_and_segment(data.test)
    scores = -scores
    masks = [
        np.zeros(m.shape, bool) if path is None else read_mask(path, m.shape)
        for m, path in zip(maps, data.masks, strict=True)
    ]
    usable = [i for i in range(len(maps)) if masks[i].any() or not data.bad[i]]
    thresholds = {r: conformal_threshold(-detector.calibration_scores_, r) for r in (0.01, 0.05)}
    rng, good, bad = np.random.default_rng(0), scores[~data.bad], scores[data.bad]
    drawn = [(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(N_BOOT)]

    def auroc(g: np.ndarray, b: np.ndarray) -> float:
        return float(roc_auc_score([0] * len(g) + [1] * len(b), [*g, *b]))

    found = {
        "auroc": auroc(good, bad),
        "auroc_interval": interval(np.array([auroc(g, b) for g, b in drawn])),
        "aupro": aupro_score([masks[i] for i in usable], [maps[i] for i in usable]),
        "recall_at_5": float((bad > np.quantile(good, 0.95)).mean()),
        "fit_seconds": fit_seconds,
        "ms": ms,
        "mb": detector.memory_bank_.nbytes / 1e6,
    }
    for rate, threshold in thresholds.items():
        found[f"recall_{rate:g}"] = float((bad > threshold).mean())
        found[f"recall_{rate:g}_interval"] = interval(np.array([(b > threshold).mean() for _, b in drawn]))
        found[f"flagged_{rate:g}"] = float((good > threshold).mean())
        found[f"flagged_{rate:g}_interval"] = interval(np.array([(g > threshold).mean() for g, _ in drawn]))
    return found


def stored(path: Path, compute: Any) -> Any:
    """Return the stored result of a computation; compute and store it if it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(compute()))
    return json.loads(path.read_text())


def selected(detector: PatchCoreDetector, data: Data, **options: Any) -> dict[str, Any]:
    """Choose a setting from the training images; return the criterion of each setting and the choice."""
    begin = time.perf_counter()
    result = select_settings(detector, GRID, data.train, **options)
    seconds = time.perf_counter() - begin
    names = {}
    for params in ParameterGrid(GRID):
        changed = {k: v for k, v in params.items() if repr(v) != repr(detector.get_params().get(k))}
        names[", ".join(f"{k}={v!r}" for k, v in sorted(changed.items())) or "as given"] = named(params)
    rows = result.table
    return {
        "found": {names[text]: value for text, value in zip(rows["setting"], rows["found"], strict=True)},
        "gain": {names[text]: value for text, value in zip(rows["setting"], rows["gain"], strict=True)},
        "gain_se": {names[text]: value for text, value in zip(rows["setting"], rows["gain_se"], strict=True)},
        "chosen": names[rows["setting"][rows["chosen"]].iloc[0]],
        "reason": result.reason,
        "seconds": seconds,
        "n_defects": result.n_defects,
    }


def markdown(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy(dtype=object).tolist()]
    return ["| " + " | ".join(str(value) for value in row) + " |" for row in rows] + [""]


def with_interval(row: dict[str, Any], name: str) -> str:
    """Return a value with its interval as text."""
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} ({low:.3f}–{high:.3f})"


def main() -> None:
    """Run all measurements and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "settings.md")
    parser.add_argument("--cache", type=Path, required=True, help="folder for layer maps and results")
    parser.add_argument("--only", nargs="*", help="names of data sets")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    given = named({})
    sections, summary, everywhere = [], [], []
    for name, read in data_sets(options.data).items():
        if options.only and name not in options.only:
            continue
        data, folder = read(), options.cache / "results" / name.replace(" ", "_")
        detector = given_detector(options.cache / "layers")
        rows: dict[str, dict[str, Any]] = {}
        for params in ParameterGrid(GRID):
            text = named(params)
            fresh = clone(detector).set_params(**params)
            rows[text] = stored(folder / f"{text}.json", lambda fresh=fresh, data=data: measured(fresh, data))
            print(name, text, round(rows[text]["auroc"], 4), round(rows[text]["recall_at_5"], 3), flush=True)
        choice = stored(folder / "choice.json", lambda detector=detector, data=data: selected(detector, data))
        if "transplants" in name and "smooth" not in name:  # these images have a background
            plain = stored(
                folder / "choice_everywhere.json",
                lambda detector=detector, data=data: selected(detector, data, region=None),
            )
        print(name, choice["reason"], flush=True)
        order = sorted(rows, key=lambda text: -rows[text]["auroc"])
        table = [
            {
                "setting": f"**{text}**" if text == choice["chosen"] else text,
                "image AUROC": with_interval(rows[text], "auroc"),
                "AUPRO": f"{rows[text]['aupro']:.3f}",
                "recall, promised 1 %": with_interval(rows[text], "recall_0.01"),
                "flagged good": with_interval(rows[text], "flagged_0.01"),
                "recall, promised 5 %": with_interval(rows[text], "recall_0.05"),
                "flagged good ": with_interval(rows[text], "flagged_0.05"),
                "fit s": f"{rows[text]['fit_seconds']:.1f}",
                "ms per image": f"{rows[text]['ms']:.1f}",
                "MB": f"{rows[text]['mb']:.2f}",
                "synthetic found": f"{choice['found'][text]:.3f}",
            }
            for text in order
        ]
        auroc, recall, found = (
            np.array([of[text] if of is choice["found"] else rows[text][key] for text in order])
            for of, key in ((rows, "auroc"), (rows, "recall_at_5"), (choice["found"], ""))
        )
        own, default = order.index(choice["chosen"]), order.index(given)
        varies = np.ptp(auroc) > 0
        if "transplants" in name and "smooth" not in name:
            everywhere.append(
                f"{name}: {spearmanr([plain['found'][text] for text in order], auroc)[0]:.2f} with defects anywhere, "
                f"{spearmanr(found, auroc)[0]:.2f} with defects on the part."
            )
        summary.append(
            {
                "data": name,
                "train": len(data.train),
                "default AUROC": f"{auroc[default]:.3f}",
                "best": f"{auroc.max() - auroc[default]:+.3f}",
                "chosen": f"{auroc[own] - auroc[default]:+.3f}",
                "default recall at 5 %": f"{recall[default]:.3f}",
                "best ": f"{recall.max() - recall[default]:+.3f}",
                "chosen ": f"{recall[own] - recall[default]:+.3f}",
                "rank corr. with AUROC": f"{spearmanr(found, auroc)[0]:.2f}" if varies else "",
                "with recall": f"{spearmanr(found, recall)[0]:.2f}" if np.ptp(recall) > 0 else "",
                "chosen setting": choice["chosen"],
                "seconds": f"{choice['seconds']:.0f}",
            }
        )
        n_bad = int(data.bad.sum())
        counts = f"{len(data.train)} training images, {len(data.bad) - n_bad} good and {n_bad} defective"
        sections += [
            f"## {name}",
            "",
            f"{counts} test images.",
            "",
            *markdown(pd.DataFrame(table)),
            choice["reason"],
            "",
        ]
    lines = [
        "# Settings, and the choice without defects",
        "",
        f"Backbone efficientnet_lite2 (ImageNet weights from the package index), images of {SIDE}×{SIDE} pixels, ratio "
        f"1 %, {N_FOLDS} folds, seed 0, {len(list(ParameterGrid(GRID)))} settings. The given setting is '{given}', the "
        "default of the package. Recalls are measured at the thresholds that promise a false-alarm rate of 1 % and "
        "5 %, and `flagged "
        "good` is the measured rate. Intervals are 95 % bootstrap intervals over test images. 'Recall at 5 %' in the "
        "first table is measured at the 95th percentile of the good test images. `fit s` includes the calibration. The "
        "network's outputs come from a cache. The chosen setting is bold.",
        "",
        "## Choice by `select_settings`, from good images only",
        "",
        *markdown(pd.DataFrame(summary)),
        "Times were measured while other programs ran. The test crops of a texture come from another part of its image "
        "than the training crops, so promised false-alarm rates do not hold there. "
        "'best' and 'chosen' are differences from the default. mtd, hazelnut_toy have real defects, the textures "
        "synthetic ones, and the transplants are real defects of mtd that are drawn on other surfaces.",
        "",
        "Rank correlation of the synthetic with the real ranking (AUROC) if synthetic defects may also lie on the "
        "background (`region=None`) or only on the part (the default): " + " ".join(everywhere),
        "",
        *sections,
        f"{platform.machine()}, torch {torch.__version__.split('+')[0]}, one thread. Made by `python "
        "benchmarks/settings.py PATH/TO/data --cache CACHE`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
