"""Write model files that later versions must still read, and the results of their detectors.

Run this script once before each release::

    python -m tests.contracts.golden.write
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, save

FOLDER = Path(__file__).parent


def images(n_images: int = 8) -> np.ndarray:
    """Return patterned images, uint8 of shape (n_images, 96, 128, 1); the last two have a bright spot."""
    rows, columns = np.mgrid[:96, :128]
    found = np.stack(
        [((rows * 5 + columns * 3 + 17 * i) % 61 * 2 + (rows // 8 + columns // 8) % 2 * 60) for i in range(n_images)]
    )
    found[-2:, 40:56, 60:84] = 255
    return found.astype(np.uint8)[..., None]


def features(n_images: int = 8) -> np.ndarray:
    """Return the same images as patch features, float32 of shape (n_images, 12, 16, 64)."""
    return images(n_images).reshape(n_images, 12, 8, 16, 8).swapaxes(2, 3).reshape(n_images, 12, 16, 64) / np.float32(7)


DETECTORS = {
    "efficientnet_lite0": (
        PatchCoreDetector(
            TorchFeatureExtractor("efficientnet_lite0", image_size=64, crop_size=None),
            sampler=GreedyCoresetSampler(0.1),
            contamination=0.2,
            random_state=0,
        ),
        images,
    ),
    "features": (PatchCoreDetector("precomputed", contamination=0.2, random_state=0), features),
}


def main() -> None:
    """Fit each detector, save its model file, and write its scores, labels and maps to a JSON file beside it."""
    for name, (detector, make) in DETECTORS.items():
        X = make()
        detector.fit(X[:6])
        path = FOLDER / f"{name}-{skpatchcore.__version__}.skops"
        save(detector, path)
        maps = detector.segment(X)
        expected = {
            "scores": detector.score_samples(X).tolist(),
            "labels": detector.predict(X).tolist(),
            "largest of maps": np.max(maps, axis=(1, 2)).tolist(),
            "means of maps": np.mean(maps, axis=(1, 2), dtype=np.float64).tolist(),
            "offset": detector.offset_,
        }
        path.with_suffix(".json").write_text(json.dumps(expected, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
