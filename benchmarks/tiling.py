"""Compare tiles of large images with whole images: features, scores, memory, and a fit of 12-megapixel images.

    python benchmarks/tiling.py -o benchmarks/results/tiling.md
    python benchmarks/tiling.py --large 200 -o benchmarks/results/tiling_large.md

The first command compares features and scores, and measures the peak memory of one image of 20 megapixels. Each memory
measurement runs in a separate process. The second command fits a detector on images of 3000×4000 pixels at full
resolution within 8 GB. It writes the images to a temporary folder. They are made from a photograph of scikit-image with
a seeded generator, one image after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = "--child"
SIZE = (3000, 4000)


def resident() -> int:
    """Return the current resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Return the highest resident memory of this process so far in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def textured(size: tuple[int, int], seed: int, texture: str = "gravel"):
    """Return an image of shape (height, width, 3), uint8, that is made of mirrored pieces of a photograph."""
    import numpy as np
    import skimage.data

    rng = np.random.default_rng(seed)
    photograph = getattr(skimage.data, texture)()
    side = len(photograph)
    rows, columns = (-(-n // side) for n in size)
    pieces = [
        np.hstack([photograph[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])] for _ in range(columns)])
        for _ in range(rows)
    ]
    grey = np.vstack(pieces)[: size[0], : size[1]].astype(np.float32)
    light = np.linspace(*rng.uniform(0.9, 1.1, 2), size[1], dtype=np.float32) * rng.uniform(0.95, 1.05)
    grey = grey * light + rng.normal(0, 3, size[1]).astype(np.float32)
    tint = np.array([1.0, 0.97, 0.92], np.float32)
    return (grey[:, :, None] * tint).clip(0, 255).astype(np.uint8)


def fit_large(n_images: int, folder: str, max_memory: str, n_selected: int, cached: bool) -> None:
    """Fit on images of 12 megapixels in this process; print times and memory as JSON."""
    from PIL import Image

    paths = []
    for i in range(n_images):
        path = Path(folder) / f"{i:04d}.jpg"
        Image.fromarray(textured(SIZE, i)).save(path, quality=92)
        paths.append(str(path))
    at_start = resident()

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
    from skpatchcore._utils.progress import record_seconds

    extractor = TorchFeatureExtractor(
        "efficientnet_lite0",
        image_size=None,
        crop_size=None,
        batch_size=1,
        memory=str(Path(folder) / "cache") if cached else None,
        verbose=0,
    )
    detector = PatchCoreDetector(
        extractor,
        sampler=GreedyCoresetSampler(n_selected),
        max_memory=max_memory,
        random_state=0,
        verbose=1,
    )
    start = time.perf_counter()
    with record_seconds() as seconds:
        detector.fit(paths)
    fitted = {
        "images": n_images,
        "seconds": time.perf_counter() - start,
        "stages": seconds,
        "peak": peak_resident(),
        "before": at_start,
        "n_bank": len(detector.memory_bank_),
        "n_channels": detector.memory_bank_.shape[1],
        "plan": str(detector.calibration_plan_),
    }
    print(json.dumps(fitted), flush=True)


def in_a_process(*arguments: object) -> dict:
    """Run a function of this file in a fresh process; return the JSON that it prints last."""
    command = [sys.executable, __file__, CHILD, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=36_000)
    return json.loads(done.stdout.splitlines()[-1])


def large(n_images: int, output: Path, n_selected: int, max_memory: str) -> None:
    """Fit on images of 12 megapixels and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        r = in_a_process("fit_large", n_images, folder, max_memory, n_selected, True)
    print(r, flush=True)
    output.write_text(json.dumps(r), encoding="utf-8")


def main() -> None:
    """Run the measurements and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "tiling.md")
    parser.add_argument("--large", type=int, metavar="N", help="fit on N images of 12 megapixels instead")
    parser.add_argument("--rows", type=int, default=5000, help="rows of the memory bank of --large")
    parser.add_argument("--max-memory", default="7GB", help="memory limit of --large")
    options = parser.parse_args()
    if options.large:
        large(options.large, options.output, options.rows, options.max_memory)


if __name__ == "__main__":
    if CHILD in sys.argv:
        name, *arguments = json.loads(sys.argv[-1])
        globals()[name](*arguments)
    else:
        main()
