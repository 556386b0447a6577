"""Write the detectors that later versions must still read, and what they say: once, before a version is released.

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
    """Return a pattern of whole numbers, with a spot in the last two: of shape (n_images, 96, 128, 1), uint8."""
    rows, columns = np.mgrid[:96, :128]
    found = np.stack(
        [((rows * 5 + columns * 3 + 17 * i) % 61 * 2 + (rows // 8 + columns // 8) % 2 * 60) for i in range(n_images)]
    )
    found[-2:, 40:56, 60:84] = 255
    return found.astype(np.uint8)[..., None]


def features(n_images: int = 8) -> np.ndarray:
    """Return the same as patch features, of shape (n_images, 12, 16, 64), float32."""
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
    """Fit, save and write down the scores."""
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
