"""Compare model files written by joblib and by `skpatchcore.save`: size, and seconds to write and to read.

    python benchmarks/model_files.py -o benchmarks/results/model_files.md

The images are crops of scikit-image's textures, 224×224 pixels. The backbones are WideResNet-50 with random weights and
EfficientNet-Lite 2 with pretrained weights.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from devices import make_images

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor

WAYS: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Path], Any]]] = {
    "joblib": (joblib.dump, joblib.load),
    "joblib, compress=3": (lambda detector, path: joblib.dump(detector, path, compress=3), joblib.load),
    "save": (skpatchcore.save, skpatchcore.load),
    'save, bank_dtype="float16"': (
        lambda detector, path: skpatchcore.save(detector, path, bank_dtype="float16"),
        skpatchcore.load,
    ),
}


def main() -> None:
    """Fit each detector, write and read it in each way, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "model_files.md")
    parser.add_argument("--images", type=int, default=209)
    options = parser.parse_args()
    images = make_images(options.images)
    lines = [
        "# Model files",
        "",
        f"The detectors are fitted on {options.images} images of 224×224 pixels. Times are the best of three. The last "
        "column is the largest relative change of the scores of 8 images after the detector was written and read.",
        "",
        "| backbone | rows of the bank | written with | MB | seconds to write | seconds to read | change of scores |",
        "|---|---|---|---|---|---|---|",
    ]
    backbones = (("efficientnet_lite2", "DEFAULT"), ("wide_resnet50_2", None))
    for (backbone, weights), ratio in product(backbones, (0.01, 0.1)):
        extractor = TorchFeatureExtractor(backbone, weights=weights, image_size=None, crop_size=None)
        detector = PatchCoreDetector(
            extractor, sampler=GreedyCoresetSampler(ratio), calibration=None, random_state=0
        ).fit(images)
        X = images[:8] // 2
        expected = detector.score_samples(X)
        for name, (write, read) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / ("a.joblib" if "joblib" in name else "a.skops")
                seconds = []
                for _ in range(3):
                    start = time.perf_counter()
                    write(detector, path)
                    middle = time.perf_counter()
                    loaded = read(path)
                    seconds.append((middle - start, time.perf_counter() - middle))
                size = path.stat().st_size
            change = np.abs(loaded.score_samples(X) / expected - 1).max()
            to_write, to_read = np.min(seconds, axis=0)
            lines.append(
                f"| {backbone} | {len(detector.memory_bank_)} | {name} | {size / 1e6:.2f} | {to_write:.2f} "
                f"| {to_read:.2f} | {'none' if change == 0 else f'{change:.1e}'} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{os.cpu_count()} CPU cores, skpatchcore {skpatchcore.__version__}. `save` waits until the file is on disk, "
        "and reads the file back to verify it.",
        "",
        "Made by `python benchmarks/model_files.py`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
