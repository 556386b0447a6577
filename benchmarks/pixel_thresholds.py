"""Measure the F1 score of pixels, and false pixels in good images, at thresholds for images and for pixels.

    python benchmarks/pixel_thresholds.py PATH/TO/mtd PATH/TO/hazelnut_toy -o benchmarks/results/pixel_thresholds.md

The good images of Magnetic Tile Defects are divided at random. No threshold uses a test image; the last row of each
data set is the best F1 score of any threshold, for comparison.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sklearn
import torch

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.datasets import read_mask
from skpatchcore.maps import without_small_regions
from skpatchcore.metrics import pixel_metrics

SHARES = (1e-4, 1e-3, 1e-2)
CONTAMINATIONS = (0.01, 0.05)


def counts(masks: list, truths: list, good: np.ndarray) -> dict[str, float]:
    """Return the F1 score of all pixels, and the fractions of good pixels and of good images that are marked."""
    hits = sum(int((mask & truth).sum()) for mask, truth in zip(masks, truths, strict=True))
    marked = sum(int(mask.sum()) for mask in masks)
    defective = sum(int(truth.sum()) for truth in truths)
    own = [mask for mask, is_good in zip(masks, good, strict=True) if is_good]
    return {
        "f1": 2 * hits / max(marked + defective, 1),
        "recall": hits / max(defective, 1),
        "pixels": sum(int(mask.sum()) for mask in own) / sum(mask.size for mask in own),
        "images": float(np.mean([mask.any() for mask in own])),
    }


def rows_of(detector: PatchCoreDetector, maps: list, truths: list, good: np.ndarray) -> Iterator[str]:
    """Yield the rows of the table for one fitted detector, from the anomaly maps of the test images."""
    for contamination in CONTAMINATIONS:
        detector.recalibrate(contamination=contamination)
        masks = [anomaly_map > detector.pixel_offset_ for anomaly_map in maps]
        yield cells(f"image-wise, {contamination:.0%} of images", contamination, counts(masks, truths, good))
    for share in SHARES:
        detector.recalibrate(contamination="auto", pixel_contamination=share)
        masks = [anomaly_map > detector.pixel_offset_ for anomaly_map in maps]
        yield cells(f"pixel-wise, {share:g} of pixels", share, counts(masks, truths, good))
        large = [without_small_regions(mask, int(detector.min_area_ * mask.size) + 1) for mask in masks]
        name = f'pixel-wise, {share:g} of pixels, min_area="auto" ({detector.min_area_:.1%} of the image)'
        yield cells(name, share, counts(large, truths, good))
    best, _ = pixel_metrics(truths, maps)
    yield f"| best threshold (uses the test masks) | | {best['pixel_f1_max']:.3f} | | | |"


def cells(name: str, asked: float, found: dict[str, float]) -> str:
    """Return one row of the table."""
    return (
        f"| {name} | {asked:g} | {found['f1']:.3f} | {found['recall']:.1%} | {found['pixels']:.2g} | "
        f"{found['images']:.1%} |"
    )


def data(root: Path, n_train: int | None, seed: int) -> tuple[list, list, list, np.ndarray]:
    """Return training images, test images, masks of the test images, and which of them are good."""
    folder = load_image_folder(root)
    train, test = list(folder.train_paths), list(folder.test_paths)
    masks, good = list(folder.test_masks), list(folder.test_labels == 1)
    if n_train is not None:
        order = np.random.default_rng(seed).permutation(len(train))
        kept = set(order[:n_train].tolist())
        rest = [path for i, path in enumerate(train) if i not in kept]
        train = [path for i, path in enumerate(train) if i in kept]
        test, masks, good = test + rest, masks + [None] * len(rest), good + [True] * len(rest)
    return train, test, masks, np.array(good)


def main() -> None:
    """Measure both data sets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtd", type=Path)
    parser.add_argument("hazelnut", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "pixel_thresholds.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--train", type=int, default=250)
    options = parser.parse_args()
    begin = time.perf_counter()
    lines = [
        "# Pixel thresholds: asked and measured",
        "",
        f"The backbone is {options.backbone} (ImageNet weights from the package index). Images are resized so that the "
        f'shorter side is 256 pixels, without a crop. `calibration="auto"`, b = 9. Magnetic Tile Defects: '
        f"{options.train} good images for the fit, drawn at random, and 1 % of the patches. Hazelnuts: 28 good images, "
        "and 10 % of the patches. Pixels are compared at the own size of each image.",
        "",
        "- *Asked*: accepted fraction of good images with any marked pixel (image-wise), or accepted fraction of the "
        "pixels of good images (pixel-wise).",
        "- *F1*: of all pixels of all test images, as SegF1 of MVTec AD 2. *Recall*: fraction of the defective pixels "
        "that are marked.",
        "- *False pixels*, *good images marked*: measured on fresh good images.",
        '- `min_area="auto"` removes regions that are not larger than those of good images, at the promised rate of '
        '`contamination="auto"` (1 % of the tiles, 3.4 % of the hazelnuts).',
        "",
    ]
    for title, root, n_train, ratio in (
        ("Magnetic Tile Defects", options.mtd, options.train, 0.01),
        ("Hazelnuts", options.hazelnut, None, 0.1),
    ):
        train, test, mask_paths, good = data(root, n_train, 0)
        extractor = TorchFeatureExtractor(options.backbone, image_size=256, crop_size=None)
        detector = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(ratio), random_state=0).fit(train)
        maps = [result.anomaly_map for result in detector.iter_results(test)]
        truths = [read_mask(path, one.shape) for path, one in zip(mask_paths, maps, strict=True)]
        # Defective images without a mask are left out.
        kept = [i for i, truth in enumerate(truths) if good[i] or truth.any()]
        maps, truths, good = [maps[i] for i in kept], [truths[i] for i in kept], good[kept]
        lines += [
            f"## {title}: {len(train)} images of the fit, {int(good.sum())} good and {int((~good).sum())} defective "
            f"test images, {detector.calibration_plan_}",
            "",
            "| threshold | asked | F1 | recall | false pixels | good images marked |",
            "|---|---|---|---|---|---|",
            *rows_of(detector, maps, truths, good),
            "",
        ]
        print(f"{time.perf_counter() - begin:.0f} s: {title}", flush=True)
    lines += [
        f"torch {torch.__version__.split('+')[0]}, scikit-learn {sklearn.__version__}, skpatchcore "
        f"{skpatchcore.__version__}, {platform.machine()}.",
        "",
        "Made by `python benchmarks/pixel_thresholds.py PATH/TO/mtd PATH/TO/hazelnut_toy`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
