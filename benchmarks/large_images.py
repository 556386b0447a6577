"""Measure how many small defects are found in 12-megapixel images, by the size to which the images are resized.

    python benchmarks/large_images.py -o benchmarks/results/large_images.md

The images are synthetic brushed metal of 3000 × 4000 pixels: noise that is blurred along the rows, uneven light and
sensor noise. Each defective image has one defect of a known diameter. Each image size is measured in its own process.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

CHILD = "--child"
SIZES = ("256", "512", "1024", "2048", "none")
SHAPE = (3000, 4000)
DIAMETERS = (4, 8, 12, 20, 40)
KINDS = ("blob", "stain", "foreign")
CONTRAST = 0.6


def metal(seed: int):
    """Return an image of brushed metal, uint8 of shape (3000, 4000, 1)."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    brushed = gaussian_filter(rng.standard_normal(SHAPE, np.float32), (0.8, 16))
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
    light = rng.uniform(-12, 12) * rows[:, None] + rng.uniform(-12, 12) * columns + rng.uniform(-4, 4)
    image = 120 + 14 * brushed / brushed.std() + light + 3 * rng.standard_normal(SHAPE, np.float32)
    return image.clip(0, 255).astype(np.uint8)[..., None]


def measure(image_size: int | None, backbone: str, n_train: int, n_good: int, n_repeats: int, rows: int) -> dict:
    """Fit and score in this process; return what was found, times and peak memory."""
    import resource

    import numpy as np

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
    from skpatchcore.datasets import draw_defect

    train = [metal(i) for i in range(n_train)]
    detector = PatchCoreDetector(
        TorchFeatureExtractor(backbone, image_size=image_size),
        sampler=GreedyCoresetSampler(rows),
        contamination=0.05,
        random_state=0,
    )
    begin = time.perf_counter()
    detector.fit(train)
    fit_seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin = time.perf_counter()
    flagged = [int(detector.predict([metal(10_000 + i)])[0] == -1) for i in range(n_good)]
    seconds = (time.perf_counter() - begin) / n_good
    found: dict[int, list[int]] = {diameter: [] for diameter in DIAMETERS}
    for number in range(n_repeats):
        for diameter in DIAMETERS:
            for k, kind in enumerate(KINDS):
                seed = 20_000 + 100 * number + 10 * DIAMETERS.index(diameter) + k
                image, _ = draw_defect(metal(seed), kind, diameter, contrast=CONTRAST, random_state=seed)
                found[diameter].append(int(detector.predict([image])[0] == -1))
    return {
        "flagged": float(np.mean(flagged)),
        "found": {str(diameter): float(np.mean(hits)) for diameter, hits in found.items()},
        "patch": max(detector.inspection_.patch_size),
        "fit_seconds": fit_seconds,
        "seconds": seconds,
        "gib": peak,
        "plan": detector.calibration_plan_,
    }


def main() -> None:
    """Measure all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "large_images.md")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--train", type=int, default=24)
    parser.add_argument("--good", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SIZE")
    parser.add_argument(CHILD, metavar="SIZE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        size = None if options.child == "none" else int(options.child)
        given = options.backbone, options.train, options.good, options.repeats, options.rows
        print(json.dumps(measure(size, *given)))
        return
    n_each = options.repeats * len(KINDS)
    import torch

    import skpatchcore

    lines = [
        "# Small defects in images of 12 megapixels",
        "",
        f"Images of synthetic brushed metal, 3000 × 4000 pixels, {options.train} for the fit. Each of "
        f"{n_each * len(DIAMETERS)} test images has one defect ({', '.join(KINDS)}; contrast {CONTRAST:g}); "
        f"{options.good} others are good. The backbone is {options.backbone} (ImageNet weights), "
        f"the memory bank has {options.rows} rows. The promised false-positive rate is 5 %. "
        f"{torch.get_num_threads()} thread(s).",
        "",
        f"*Found*: fraction of {n_each} defects of the diameter, in pixels of the image. *Patch*: side of the cell of "
        "one patch, in pixels of the image. *Score*: seconds per image, including about 1 second to make the image. "
        "*Memory*: peak of the resident memory in the fit. The training images take "
        f"{options.train * SHAPE[0] * SHAPE[1] / 2**30:.2f} GiB of it.",
        "",
        "| image_size | patch | " + " | ".join(f"found, {d} px" for d in DIAMETERS)
        + " | good flagged | fit, s | score, s | memory, GiB | calibration |",
        "|" + "---|" * (len(DIAMETERS) + 7),
    ]  # fmt: skip
    for size in options.sizes:
        words = [sys.executable, __file__, CHILD, size, "--backbone", options.backbone]
        words += ["--train", str(options.train), "--good", str(options.good), "--repeats", str(options.repeats)]
        result = json.loads(subprocess.check_output([*words, "--rows", str(options.rows)]).splitlines()[-1])
        shares = " | ".join(f"{result['found'][str(diameter)]:.0%}" for diameter in DIAMETERS)
        lines.append(
            f"| {'full (None)' if size == 'none' else size} | {result['patch']:.0f} | {shares} | "
            f"{result['flagged']:.0%} | {result['fit_seconds']:.0f} | {result['seconds']:.1f} | {result['gib']:.1f} | "
            f"{result['plan']} |"
        )
        print(lines[-1], flush=True)
        versions = f"torch {torch.__version__.split('+')[0]}, skpatchcore {skpatchcore.__version__}"
        end = f"{versions}, {platform.machine()}.\n\nMade by `python benchmarks/large_images.py`.\n"
        options.output.write_text("\n".join([*lines, "", end]), encoding="utf-8")


if __name__ == "__main__":
    main()
