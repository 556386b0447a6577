"""A detector without a network, and a program that watches a folder with it.

    python -m tests.watching.light DIR OUT [SECONDS PER IMAGE] [JSON of the options]

The program is killed in some tests, so it imports no large library.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from skpatchcore.detectors import ImageResult
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import load_image
from skpatchcore.watching import WatchSettings, watch_folder

THRESHOLD = -0.5


class LightDetector:
    """The score of an image is minus the mean of its pixels: dark parts are normal, bright ones are anomalous."""

    runtime = "light"  # like an exported detector, it has no embeddings, so drift is not watched

    def __init__(self, seconds: float = 0.0, maps: bool = False, offset: float = THRESHOLD):
        self.seconds, self.maps = seconds, maps
        self.offset_, self.pixel_offset_ = offset, -offset
        self.calibration_scores_ = np.linspace(-0.5, 0, 11)
        self.batches: list[list[str]] = []

    def iter_results(self, X, *, on_error="raise"):
        """Yield the results."""
        self.batches.append([str(path) for path in X])
        for i, path in enumerate(X):
            time.sleep(self.seconds)
            try:
                pixels = load_image(path, i)
            except ImageError as error:
                yield ImageResult(i, path, math.nan, math.nan, -1, math.nan, None, error)
                continue
            score = -float(pixels.mean())
            label = 1 if score >= self.offset_ else -1
            p_value = float((self.calibration_scores_ <= score).mean())
            anomaly_map = pixels.mean(axis=-1).astype(np.float32) if self.maps else None
            yield ImageResult(i, path, score, score - self.offset_, label, p_value, anomaly_map, None)


def image(value: int = 0, side: int = 8) -> bytes:
    """Return the content of a grey image file (.pgm): 0 is a normal part, 255 an anomalous one."""
    return b"P5 %d %d 255\n" % (side, side) + bytes([value]) * side * side


def model_file(output: Path) -> Path:
    """Return a file beside the output folder that stands for a model."""
    path = output.with_name(f"{output.name}.model")
    if not path.exists():
        path.write_bytes(b"model")
    return path


def main() -> None:
    """Watch a folder."""
    folder, output, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    detector = LightDetector(seconds)
    watch_folder(folder, model_file(output), output, WatchSettings(**options), load=lambda path: detector)


if __name__ == "__main__":
    main()
