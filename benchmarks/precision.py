"""What lower precision does to scores: networks in bfloat16, banks stored in float16.

    python benchmarks/precision.py PATH/TO/mtd -o benchmarks/results/precision.md

Magnetic Tile Defects, random split, the same seed for all.
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
    """Fit and score in each precision, and write the table."""
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
        f"{options.train} training images of Magnetic Tile Defects, all {len(folder.test_paths)} test images, 224×224, "
        f"backbone {options.backbone}, ratio {options.ratio:g}, torch {torch.__version__.split('+')[0]}, skpatchcore "
        f"{skpatchcore.__version__}. Scores against those of the first row.",
        "",
        "| network | bank | image AUROC | median change of a score | largest | rank correlation | bank in bytes |",
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
