"""Check regions of interest on Magnetic Tile Defects: defects outside are not reported, and thresholds follow.

    python benchmarks/regions.py PATH/TO/mtd -o benchmarks/results/regions.md

The region leaves out a border of each tile. It is given in three ways: as a box in fractions of the image, as one mask
that is scaled to each image, and as a mask per image.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import label

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, load_image_folder
from skpatchcore.datasets import read_mask
from skpatchcore.images.reading import image_size
from skpatchcore.images.roi import scaled_mask

# Width of the border as a fraction of the height and of the width.
BORDER = 0.15
BOX = (BORDER, BORDER, 1 - 2 * BORDER, 1 - 2 * BORDER)


def mask_of(size: tuple[int, int]) -> np.ndarray:
    """Return the mask of the box for an image of a given size."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in size)
    return np.outer(abs(rows - 0.5) < 0.5 - BORDER, abs(columns - 0.5) < 0.5 - BORDER)


def place_of(truth: np.ndarray, known: np.ndarray) -> str:
    """Return where the defective pixels of an image lie: inside, outside or both."""
    inside, outside = bool((truth & known).any()), bool((truth & ~known).any())
    return "both" if inside and outside else "inside" if inside else "outside"


def main() -> None:
    """Fit with and without the region, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mtd", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "regions.md")
    parser.add_argument("--backbone", default="efficientnet_lite2")
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--every", type=int, default=1, help="use every n-th test image")
    options = parser.parse_args()
    folder = load_image_folder(options.mtd)
    order = np.random.default_rng(0).permutation(len(folder.train_paths))
    train = [folder.train_paths[i] for i in order[: options.train]]
    good = [folder.train_paths[i] for i in order[options.train :][:: options.every]]
    bad = [i for i in np.flatnonzero(folder.test_labels == -1)[:: options.every]]
    new, masks = [folder.test_paths[i] for i in bad], [folder.test_masks[i] for i in bad]

    mask = mask_of((1000, 1000))

    def fitted(**params):
        fit = {"roi": [scaled_mask(mask, image_size(path, 0)) for path in train]} if params.pop("each", False) else {}
        detector = PatchCoreDetector(
            TorchFeatureExtractor(options.backbone, image_size=(256, 256)),
            sampler=GreedyCoresetSampler(0.01), contamination=0.05, random_state=0, **params,
        )  # fmt: skip
        return detector.fit(train, **fit)

    whole, box = fitted(), fitted(roi=BOX)
    one, each = fitted(roi=mask), fitted(each=True)
    results = list(box.iter_results(new))
    whole_results = list(whole.iter_results(new))
    known = [~np.isnan(result.anomaly_map) for result in results]
    truths = [read_mask(path, inside.shape) for path, inside in zip(masks, known, strict=True)]
    places = [place_of(t, k) if t.any() else "no mask" for t, k in zip(truths, known, strict=True)]
    found = box.regions(new)
    n_outside = sum(
        not known[int(region.image)][int(region.peak_row), int(region.peak_column)] for region in found.itertuples()
    )
    wholly = 0
    for image, group in found.groupby("image"):
        regions, _ = label(box.segment([new[image]])[0] > box.pixel_offset_, np.ones((3, 3)))
        wholly += sum(not known[image][regions == r].all() for r in range(1, regions.max() + 1)) * bool(len(group))
    own_masks = [scaled_mask(mask, image_size(path, 0)) for path in new]
    lines = [
        "# Regions of interest on Magnetic Tile Defects",
        "",
        f"The region leaves out {BORDER:.0%} of the height and of the width at each side. {len(train)} good images for "
        f"the fit, drawn at random, {len(good)} other good and {len(new)} defective images. The backbone is "
        f"{options.backbone} (ImageNet weights). Images are stretched to 256 × 256 pixels. The memory bank has 1 % of "
        "the patches. The promised rate is 5 %.",
        "",
        "| | whole image | region |",
        "|---|---|---|",
        f"| inspected pixels of the training images | {whole.inspection_.inspected:.1%} | "
        f"{box.inspection_.inspected:.1%} |",
        f"| image threshold (anomaly score) | {-whole.offset_:.3f} | {-box.offset_:.3f} |",
        f"| pixel threshold | {whole.pixel_offset_:.3f} | {box.pixel_offset_:.3f} |",
        f"| good images flagged | {(whole.predict(good) == -1).mean():.1%} | {(box.predict(good) == -1).mean():.1%} |",
    ]
    for place in ("inside", "both", "outside", "no mask"):
        here = [i for i, p in enumerate(places) if p == place]
        if here:
            shares = [np.mean([r[i].label == -1 for i in here]) for r in (whole_results, results)]
            lines.append(f"| flagged, defect {place} ({len(here)}) | {shares[0]:.1%} | {shares[1]:.1%} |")
    with_mask = each.segment(new[:20], roi=own_masks[:20])
    difference = max(np.nanmax(abs(a - b)) for a, b in zip(with_mask, one.segment(new[:20]), strict=True))
    same = all((np.isnan(a) == np.isnan(b)).all() for a, b in zip(with_mask, one.segment(new[:20]), strict=True))
    lines += [
        "",
        f"- Regions of anomalous pixels: {len(found)}. Peaks outside the region of interest: {n_outside}. Regions with "
        f"pixels outside: {wholly}.",
        f"- One mask for all images against one mask per image: image thresholds {-one.offset_:.6f} and "
        f"{-each.offset_:.6f}, largest difference of the maps of 20 images {difference:.2g}, NaN at the same pixels: "
        f"{'yes' if same else 'no'}.",
        f"- Box against mask: image thresholds {-box.offset_:.6f} and {-one.offset_:.6f}. Their edges differ by up to "
        "half a pixel.",
        "",
        f"torch {torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}, {platform.machine()}.",
        "",
        "Made by `python benchmarks/regions.py PATH/TO/mtd`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
