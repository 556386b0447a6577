"""Measure the time of a fit with each kind of calibration, side by side in one run.

python benchmarks/calibration_cost.py PATH/TO/mtd -o benchmarks/results/calibration_cost.md
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
import torch

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore._utils.progress import record_seconds

CALIBRATIONS = ("auto", "leave-one-out", None)
# Name, keywords of the extractor, number of images, ratio.
CASES = (
    ("efficientnet_lite2", {"image_size": (128, 128), "crop_size": None}, 250, 0.01),
    ("efficientnet_lite2", {"image_size": (128, 128), "crop_size": None}, 499, 0.01),
    ("efficientnet_lite2", {"image_size": 224, "crop_size": None}, 213, 0.01),
    ("efficientnet_lite2", {"image_size": 224, "crop_size": None}, 213, 0.1),
    ("wide_resnet50_2", {"weights": None}, 213, 0.01),
    ("wide_resnet50_2", {"weights": None}, 100, 0.1),
)


def main() -> None:
    """Fit each case with each calibration and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtd", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "calibration_cost.md")
    options = parser.parse_args()
    begin = time.perf_counter()
    paths = load_image_folder(options.mtd).train_paths
    lines = [
        "# Time of a fit with each kind of calibration",
        "",
        "Images of Magnetic Tile Defects, read from files. Seconds of one fit, and in brackets the percentage of the "
        "fit. *Selection* includes the reserve. *Folds* are the selections of the calibration folds. *Searches* and "
        "*maps* score the calibration images. *Rest* is reading images, searching for suspicious images, and "
        'everything else. *Relative* is the time of the fit divided by the time with `calibration="leave-one-out"`. '
        "wide_resnet50_2 has random weights: the time of the network does not depend on them, but the number of "
        "skipped distances does.",
        "",
        "| network | images | ratio | calibration | fit | network | selection | folds | searches | maps | rest "
        "| relative |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for backbone, keywords, n_images, ratio in CASES:
        order = np.random.default_rng(0).permutation(len(paths))[:n_images]
        images = list(paths[np.sort(order)])
        extractor = TorchFeatureExtractor(backbone, batch_size=4, **keywords).fit(images[:1])
        extractor.transform(images[:8])
        seconds = {}
        for calibration in (None, *CALIBRATIONS):  # the first fit does not count: files and networks are read
            detector = PatchCoreDetector(
                extractor, sampler=GreedyCoresetSampler(ratio), calibration=calibration, random_state=0
            )
            with record_seconds() as phases:
                start = time.perf_counter()
                detector.fit(images)
                seconds[calibration] = time.perf_counter() - start, dict(phases), detector.calibration_plan_
        whole = seconds["leave-one-out"][0]
        for calibration in CALIBRATIONS:
            total, phases, plan = seconds[calibration]
            parts = [phases.get(name, 0.0) for name in ("network", "selection", "calibration", "search", "maps")]
            cells = [f"{part:.1f} ({part / total:.0%})" for part in [*parts, total - sum(parts)]]
            lines.append(
                f"| {backbone} | {n_images} | {ratio:.0%} | {plan} | {total:.1f} | {' | '.join(cells)} "
                f"| {total / whole:.2f} |"
            )
        print(f"{time.perf_counter() - begin:.0f} s: {backbone}, {n_images} images, {ratio:.0%}", flush=True)
    lines += [
        "",
        f"torch {torch.__version__.split('+')[0]}, scikit-learn {sklearn.__version__}, skpatchcore "
        f"{skpatchcore.__version__}, {platform.machine()}, {torch.get_num_threads()} threads.",
        "",
        "Made by `python benchmarks/calibration_cost.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
