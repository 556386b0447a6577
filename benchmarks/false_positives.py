"""Measure the recall of defects at a promised false-positive rate, with the measured rate beside it.

    python benchmarks/false_positives.py PATH/TO/mtd -o benchmarks/results/false_positives.md

The folder is Magnetic Tile Defects in MVTec AD layout, with the file ``by_tile_split.csv`` (columns ``file``, ``tile``)
beside ``train`` and ``test``. All good images are pooled. Each repetition splits them again, at random or by tile. In a
split by tile, no tile is in both parts. The textures are the same as in the demonstration. Each repetition draws new
views. Fresh images are either other views of the training pieces or views of other pieces. For comparison, thresholds
from in-sample scores are measured, too. Patch features are extracted once and passed to the detectors as precomputed.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sklearn
import torch
from scipy.stats import binomtest

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.datasets import TEXTURES, make_textures

SHARES = (0.01, 0.05, 0.1)
DEFAULT = "auto (default)"
CALIBRATIONS = {DEFAULT: "auto", "leave-one-out": "leave-one-out", "held out, 20 %": 0.2}
IN_SAMPLE = "in-sample (for the record)"
COLORS = {
    DEFAULT: "#6a3d9a",
    IN_SAMPLE: "#b2182b",
    "leave-one-out": "#1b3a6b",
    "held out, 20 %": "#2a9d8f",
}


@dataclass
class Case:
    """Patch features of the training images, of fresh good images and of defective images, and the training groups."""

    train: np.ndarray
    fresh: np.ndarray
    bad: np.ndarray
    groups: np.ndarray | None = None


def tile_cases(features: dict, tiles: np.ndarray, repeats: range, n_train: int) -> Iterator[tuple[str, Case, int]]:
    """Yield splits of the good images of Magnetic Tile Defects: at random, and by tile without and with groups."""
    good, bad = features["good"], features["bad"]
    for seed in repeats:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(good))
        train, fresh = np.sort(order[:n_train]), np.sort(order[n_train:])
        yield "magnetic tiles, at random", Case(good[train], good[fresh], bad), seed
        names = rng.permutation(np.unique(tiles))
        is_train = np.isin(tiles, names[: len(names) // 2])
        train, fresh = np.flatnonzero(is_train), np.flatnonzero(~is_train)
        yield "magnetic tiles, by tile, groups not told", Case(good[train], good[fresh], bad), seed
        yield "magnetic tiles, by tile, groups told", Case(good[train], good[fresh], bad, tiles[train]), seed


def texture_cases(extractor: TorchFeatureExtractor, repeats: range) -> Iterator[tuple[str, Case, int]]:
    """Yield splits of texture views: fresh views of the training pieces, and views of other pieces."""
    for seed in repeats:
        for texture in TEXTURES:
            task = make_textures(texture, n_views=16, random_state=seed)
            views, pieces = extractor.transform(list(task.train_images)), task.train_groups
            defective = extractor.transform(list(task.test_images[task.test_labels == -1]))
            rng = np.random.default_rng(seed)
            order = rng.permutation(len(views))
            train, fresh = order[:99], order[99:]
            yield "textures, fresh views", Case(views[train], views[fresh], defective), seed
            other = np.isin(pieces, rng.choice(np.unique(pieces), 3, replace=False))
            yield (
                "textures, other pieces, groups told",
                Case(views[~other], views[other], defective, pieces[~other]),
                seed,
            )


def measure(name: str, case: Case, calibrations: dict, ratio: float, seed: int) -> Iterator[dict]:
    """Fit with each calibration, and count the flagged fresh good images at each value of `contamination`."""
    for label, calibration in calibrations.items():
        detector = PatchCoreDetector(
            "precomputed", sampler=GreedyCoresetSampler(ratio), calibration=calibration, random_state=seed
        ).fit(case.train, groups=case.groups)
        scores, maps = detector.score_and_segment(case.fresh)
        bad_scores = detector.score_samples(case.bad)
        peaks = maps.max(axis=(1, 2))
        for share in (*SHARES, "auto"):
            detector.recalibrate(contamination=share)
            yield {
                "data": name,
                "calibration": label,
                "plan": detector.calibration_plan_,
                "nominal": share,
                "promised": detector.promised_rate_,
                "n": len(detector.calibration_scores_),
                "flagged": int((scores < detector.offset_).sum()),
                "fresh": len(scores),
                "marked": int((peaks > detector.pixel_offset_).sum()),
                "found": (bad_scores < detector.offset_).mean(),
            }
        if calibration not in ("auto", "leave-one-out") or (calibration == "auto" and len(calibrations) > 1):
            continue
        detector.calibration_scores_ = detector.score_samples(case.train)  # in-sample: the bank holds their patches
        for share in (*SHARES, "auto"):
            detector.recalibrate(contamination=share)
            yield {
                "data": name,
                "calibration": IN_SAMPLE,
                "plan": "",
                "nominal": share,
                "promised": detector.promised_rate_,
                "n": len(case.train),
                "flagged": int((scores < detector.offset_).sum()),
                "fresh": len(scores),
                "marked": 0,
                "found": (bad_scores < detector.offset_).mean(),
            }


def asked_of(part: pd.DataFrame, share: float | str) -> pd.Series | float:
    """Return the requested rate of each repetition; "auto" requests the promised rate."""
    return part["promised"] if share == "auto" else float(share)


def summarise(found: pd.DataFrame) -> pd.DataFrame:
    """Pool the repetitions: fractions, their binomial interval, and the interval from the spread of the repetitions."""
    rows = []
    for (data, calibration, share), part in found.groupby(["data", "calibration", "nominal"], sort=False):
        n, flagged = part["fresh"].sum(), part["flagged"].sum()
        rates = part["flagged"] / part["fresh"]
        binomial = binomtest(int(flagged), int(n)).proportion_ci(0.95)
        spread = 1.96 * rates.std(ddof=1) / np.sqrt(len(rates))
        size = part["n"].mean()
        rows.append(
            {
                "data": data,
                "calibration": calibration,
                "nominal": share,
                "plan": ", ".join(dict.fromkeys(part["plan"])),
                "calibration images": round(size),
                "asked": part["promised"].mean() if share == "auto" else share,
                "promised": np.floor((part["n"] + 1) * asked_of(part, share) + 1e-9).div(part["n"] + 1).mean(),
                "flagged": flagged / n,
                "low": binomial.low,
                "high": binomial.high,
                "repetitions low": rates.mean() - spread,
                "repetitions high": rates.mean() + spread,
                "marked": part["marked"].sum() / n,
                "found": part["found"].mean(),
            }
        )
    return pd.DataFrame(rows)


def verdict(row: pd.Series) -> str:
    """Compare `contamination` with the lowest and the highest limit of both intervals."""
    low, high = min(row["low"], row["repetitions low"]), max(row["high"], row["repetitions high"])
    return "within" if low <= row["asked"] <= high else "fewer" if high < row["asked"] else "**more**"


def head(table: pd.DataFrame) -> list[str]:
    """Return the lines of the first table: recall at each promised rate, with the measured rate beside it."""
    shares = (*SHARES, "auto")
    titles = [f"found at {asked(share)} (flagged)" for share in shares]
    lines = ["| data | calibration | " + " | ".join(titles) + " |", "|---" * (2 + len(shares)) + "|"]
    for (data, calibration), part in table.groupby(["data", "calibration"], sort=False):
        rows = part.set_index("nominal")
        cells = []
        for share in shares:
            row = rows.loc[share]
            mark = {"within": "", "fewer": " ↓", "**more**": " **↑**"}[verdict(row)]
            cells.append(f"{row['found']:.1%} ({row['flagged']:.1%}{mark})")
        plan = rows["plan"].iloc[0]
        lines.append(f"| {data} | {calibration}{f': {plan}' if calibration == DEFAULT else ''} | {' | '.join(cells)} |")
    return lines


def asked(share: float | str) -> str:
    """Return a requested rate as text."""
    return '"auto"' if share == "auto" else f"{share:.0%}"


def as_markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of the Markdown table."""
    lines = [
        "| data | calibration | calibration images | contamination | guarantee | flagged | binomial 95 % "
        "| repetitions 95 % | comparison | with anomalous pixels | defects found |",
        "|---" * 11 + "|",
    ]
    for _, row in table.iterrows():
        too_few = row["promised"] == 0
        cells = [
            row["data"],
            row["calibration"],
            str(row["calibration images"]),
            asked(row["nominal"]),
            "none" if too_few else f"{row['promised']:.2%}",
            f"{row['flagged']:.2%}",
            f"{row['low']:.2%} - {row['high']:.2%}",
            f"{max(row['repetitions low'], 0):.2%} - {row['repetitions high']:.2%}",
            verdict(row),
            "" if row["calibration"] == IN_SAMPLE else f"{row['marked']:.2%}",
            f"{row['found']:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the flagged fraction over `contamination`, with one panel per kind of split."""
    names = list(dict.fromkeys(table["data"]))
    figure, panels = plt.subplots(2, 3, figsize=(9, 6.6), sharey=True, layout="constrained")
    asked = np.geomspace(0.007, 0.14, 50)
    for panel, name in zip(panels.ravel(), names, strict=False):
        for number, (label, color) in enumerate(COLORS.items()):
            part = table[(table["data"] == name) & (table["calibration"] == label) & (table["nominal"] != "auto")]
            x = part["asked"] * 1.07 ** (number - 2)
            low = (part["flagged"] - np.minimum(part["low"], part["repetitions low"])).clip(lower=0)
            high = (np.maximum(part["high"], part["repetitions high"]) - part["flagged"]).clip(lower=0)
            panel.errorbar(x, part["flagged"], [low, high], fmt="o", ms=4, color=color, label=label, capsize=2)
        panel.plot(asked, asked, color="0.5", lw=1, ls="--", label="flagged = contamination")
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        panel.set_ylim(-0.001, 1.05)
        panel.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
        panel.set_yticks([0, 0.01, 0.05, 0.1, 0.5, 1], ["0", "1 %", "5 %", "10 %", "50 %", "100 %"])
        panel.minorticks_off()
        panel.set_title(name.replace(", ", ",\n"), fontsize=9)
        panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("fresh good images flagged")
    figure.supxlabel("contamination: accepted fraction of flagged good images", fontsize=10)
    for empty in panels.ravel()[len(names) :]:
        empty.set_axis_off()
    panels[-1, -1].legend(*panels[0, 0].get_legend_handles_labels(), loc="center left", frameon=False)
    figure.savefig(path, dpi=110)


def counted(options: argparse.Namespace) -> list[dict]:
    """Return the counts of all repetitions."""
    begin = time.perf_counter()
    folder = load_image_folder(options.root)
    tiles = pd.read_csv(options.root / "by_tile_split.csv").set_index("file")["tile"]
    good = np.concatenate([folder.train_paths, folder.test_paths[folder.test_labels == 1]])
    extractor = TorchFeatureExtractor(options.backbone, image_size=(options.size, options.size), crop_size=None)
    features = {
        "good": extractor.transform(list(good)),
        "bad": extractor.transform(list(folder.test_paths[folder.test_labels == -1])),
    }
    numbers = tiles[[Path(path).name for path in good]].to_numpy()
    own_size = TorchFeatureExtractor(options.backbone, image_size=None, crop_size=None)
    seeds = range(options.first, options.first + options.repeats)
    found: list[dict] = []
    for cases in (tile_cases(features, numbers, seeds, options.train), texture_cases(own_size, seeds)):
        for name, case, seed in cases:
            calibrations = {DEFAULT: "auto"} if "not told" in name or options.only_default else CALIBRATIONS
            found += measure(name, case, calibrations, options.ratio, seed)
            print(f"{time.perf_counter() - begin:.0f} s: {name}", flush=True)
    return found


def main() -> None:
    """Measure all cases and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "false_positives.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--train", type=int, default=499)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repetition")
    parser.add_argument("--save", type=Path, help="only write the counts of each repetition to this CSV file")
    parser.add_argument("--only-default", action="store_true", help="measure only the default calibration")
    parser.add_argument("--merge", type=Path, nargs="+", help="make the table from CSV files of --save")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="contamination=")  # the table states the guarantee
    if options.merge:
        found = pd.concat([pd.read_csv(path) for path in options.merge])
        found["nominal"] = [share if share == "auto" else float(share) for share in found["nominal"]]
        found = found.fillna({"plan": ""})
    else:
        found = pd.DataFrame(counted(options))
    if options.save:
        found.to_csv(options.save, index=False)
        return
    table = summarise(found)
    draw(table, options.output.with_suffix(".png"))
    lines = [
        "# Recall at the promised false-positive rate",
        "",
        f"The backbone is {options.backbone} (ImageNet weights from the package index). Tiles are resized to "
        f"{options.size}×{options.size} pixels, and textures have 128×128 pixels. The coreset ratio is "
        f"{options.ratio}, and b = 9. There are {options.repeats} repetitions, each with its own split and seed.",
        "",
        "Each cell of the first table is the fraction of defective images that are found at a promised false-positive "
        "rate. The measured false-positive rate of fresh good images is in brackets. An arrow marks a measured rate "
        "whose 95 % interval does not contain the promised rate. The second table has the intervals.",
        "",
        *head(table),
        "",
        f"![Flagged over requested]({options.output.with_suffix('.png').name})",
        "",
        '- *Data*: with "groups told", `fit` gets the tiles or the pieces as `groups`. With "groups not told", '
        "`fit` gets no groups.\n"
        '- *Calibration*: "in-sample (for the record)" is a threshold from scores of training images against a bank '
        "that holds their own patches. The package offers no such calibration.\n"
        "- *Contamination*: the requested false-positive rate.\n"
        "- *Guarantee*: `floor((n + 1) · contamination) / (n + 1)` for `n` calibration images. This is the expected "
        'false-positive rate if images are exchangeable. "None" means that `n` is too small for a guarantee. The '
        "threshold is then the most anomalous calibration score.\n"
        "- *Flagged*: fraction of fresh good images that are flagged.\n"
        "- *Binomial 95 %*: the exact interval, if all repetitions are pooled as if they were independent.\n"
        "- *Repetitions 95 %*: mean over the repetitions ± 1.96 standard errors. This interval includes the variation "
        "from the choice of calibration images.\n"
        '- *Comparison*: "within" if the contamination lies between the lowest and the highest limit of both '
        'intervals. "Fewer" and "more" mean that fewer or more good images are flagged than requested.\n'
        "- *With anomalous pixels*: fraction of fresh good images with any pixel above `pixel_offset_`.\n"
        "- *Defects found*: fraction of defective images that are flagged with the same threshold.",
        "",
        *as_markdown(table),
        "",
        f"torch {torch.__version__.split('+')[0]}, scikit-learn {sklearn.__version__}, skpatchcore "
        f"{skpatchcore.__version__}, {platform.machine()}.",
        "",
        "Made by `python benchmarks/false_positives.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
