"""Measure how much lower precision changes scores: networks in bfloat16, memory banks stored in float16.

    python benchmarks/precision.py PATH/TO/mtd -o benchmarks/results/precision.md

The data are Magnetic Tile Defects with the random split. All detectors use the same seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import skpatchcore
from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder


def main() -> None:
    """Fit and score with each combination of precisions, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "precision.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--train", type=int, default=300)
    options = parser.parse_args()
    folder = load_image_folder(options.root)
    order = np.random.default_rng(0).permutation(len(folder.train_paths))[: options.train]
    train = [folder.train_paths[i] for i in order]
    lines = [
        "# Precision",
        "",
        f"The data are {options.train} training images and all {len(folder.test_paths)} test images of Magnetic Tile "
        f"Defects, at 224×224 pixels. The backbone is {options.backbone}, and the coreset ratio is {options.ratio:g}. "
        f"torch {torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}. Changes and rank correlation "
        "are relative to the scores of the first row.",
        "",
        "| network | bank | image AUROC | median change of scores | largest change | rank correlation | bank, bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    first = None
    for dtype, storage in (("float32", None), ("float32", "float16"), ("bfloat16", None), ("bfloat16", "float16")):
        detector = PatchCoreDetector(
            TorchFeatureExtractor(options.backbone, image_size=(224, 224), crop_size=None, dtype=dtype),
            sampler=GreedyCoresetSampler(options.ratio),
            index=ExactIndex(storage=storage),
            calibration=None,
            random_state=0,
        ).fit(train)
        scores = detector.score_samples(folder.test_paths)
        first = scores if first is None else first
        change = np.abs(scores / first - 1)
        lines.append(
            f"| {dtype} | {storage or 'float32'} | {roc_auc_score(folder.test_labels == 1, scores):.4f} "
            f"| {np.median(change):.2%} | {change.max():.2%} | {spearmanr(scores, first).statistic:.5f} "
            f"| {detector.memory_bank_.nbytes} |"
        )
        print(lines[-1], flush=True)
    lines += ["", "Made by `python benchmarks/precision.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
