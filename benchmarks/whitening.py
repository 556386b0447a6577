"""Measure PatchWhitening: time of the search, peak memory of a fit, equal results in each way, and flagged images.

    python benchmarks/whitening.py -o benchmarks/results/whitening.md

All times are on one thread. The images of the first and the last table are crops of scikit-image's textures. The fits
whose memory is measured run in separate processes, on made-up patch features with 1,536 channels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

CHILD = "--child"
N_PATCHES = 784


class MadeUpFeatures:
    """Extractor of made-up patch features with 1,536 channels: correlated numbers that depend on the image's number."""

    n_channels, side, batch_size = 1536, 28, 4

    def get_params(self, deep: bool = True) -> dict:
        """Return no parameters: a clone is a new object."""
        return {}

    def set_params(self, **params: object) -> MadeUpFeatures:
        """Return the extractor itself."""
        return self

    def fit(self, X: object = None, y: object = None) -> MadeUpFeatures:
        """Return the extractor itself."""
        return self

    def transform(self, X):
        """Return the grids of the images, whose first pixel is the image's number."""
        import numpy as np

        shape = (self.side, self.side, self.n_channels)
        return np.stack([made_up_rows(int(image.flat[0]), self.side**2, self.n_channels).reshape(shape) for image in X])


def made_up_rows(seed: int, n_rows: int, n_columns: int):
    """Return correlated rows, float32: the variances of their principal components fall as those of a network do."""
    import numpy as np

    mixing = np.random.default_rng(10**6).normal(size=(200, n_columns)).astype(np.float32)
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n_rows, 200)).astype(np.float32) * np.geomspace(1, 0.02, 200, dtype=np.float32)
    return factors @ mixing + 0.1 * rng.normal(size=(n_rows, n_columns)).astype(np.float32)


def resident() -> int:
    """Return the current resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def transformer_of(name: str):
    """Return a transformer by the name in the tables."""
    from sklearn.decomposition import PCA

    from skpatchcore import PatchWhitening

    return {
        "none": None,
        "PatchWhitening()": PatchWhitening(),
        "PatchWhitening(n_components=384)": PatchWhitening(n_components=384),
        "PatchWhitening(n_components=64)": PatchWhitening(n_components=64),
        "PCA(384)": PCA(384),
    }[name]


def fit(n_images: int, name: str, way: str) -> None:
    """Fit in this process; print memory, seconds and a digest of the memory bank as JSON."""
    at_start = resident()
    import numpy as np
    import torch

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector

    torch.set_num_threads(1)
    images = [np.full((8, 8, 3), i, np.uint16) for i in range(n_images)]
    detector = PatchCoreDetector(
        MadeUpFeatures(), transformer=transformer_of(name), sampler=GreedyCoresetSampler(0.01), calibration=None,
        random_state=0,
    )  # fmt: skip
    estimate = detector.estimate_memory(n_images, images[0])
    limit = {"at once": None, "transformed": estimate.only_transformed, "two passes": estimate.two_passes}[way]
    start = time.perf_counter()
    detector.set_params(max_memory=limit).fit(images)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent process, too
    peak = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    estimated = {
        "at once": estimate.at_once,
        "transformed": estimate.only_transformed,
        "two passes": estimate.two_passes,
    }
    bank = hashlib.sha256(detector.memory_bank_.tobytes()).hexdigest()
    seconds = time.perf_counter() - start
    print(json.dumps({"peak": peak - at_start, "estimate": estimated[way], "seconds": seconds, "bank": bank}))


def in_a_process(*arguments: object) -> dict:
    """Run `fit` in a fresh process; return what it prints."""
    command = [sys.executable, __file__, CHILD, json.dumps(arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600)
    return json.loads(done.stdout.splitlines()[-1])


def textures(n_images: int) -> list:
    """Return crops of 224×224 pixels of scikit-image's brick texture, of different brightness."""
    import numpy as np
    from skimage import data

    rng, whole = np.random.default_rng(0), data.brick()
    found = []
    for _ in range(n_images):
        top, left = rng.integers(0, 512 - 224, 2)
        crop = whole[top : top + 224, left : left + 224] * rng.uniform(0.95, 1.05) + rng.normal(0, 3, (224, 224))
        found.append(crop.clip(0, 255).astype(np.uint8))
    return found


def best_ms(call, n_calls: int = 5) -> float:
    """Return the shortest time of some calls in milliseconds, after one call that is not measured."""
    call()
    found = []
    for _ in range(n_calls):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return 1000 * min(found)


def search_times() -> list[str]:
    """Return the table of search times, with and without whitening."""
    import numpy as np

    from skpatchcore import ExactIndex, TorchFeatureExtractor

    extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=None).fit()
    real = np.asarray(extractor.transform(textures(30))).reshape(-1, 168)
    rows = {
        "168 (efficientnet_lite2)": real[np.random.default_rng(0).permutation(len(real))],
        "1536 (made up, correlated)": made_up_rows(0, 17_000, 1536),
        "1536 (independent random numbers)": np.random.default_rng(0).normal(size=(17_000, 1536)).astype(np.float32),
    }
    lines = [
        "| columns | rows of the bank | transformer | transform, ms | search, ms | **both, ms** |",
        "|---|---|---|---|---|---|",
    ]
    for title, some in rows.items():
        queries, others = some[:N_PATCHES], some[N_PATCHES:]
        small = "PatchWhitening(n_components=64)" if some.shape[1] < 384 else "PatchWhitening(n_components=384)"
        for name in ("none", "PatchWhitening()", small):
            transformer = transformer_of(name)
            seen, bank_rows, taken = queries, others, 0.0
            if transformer is not None:
                bank_rows = transformer.fit(others).transform(others)
                seen = transformer.transform(queries)
                taken = best_ms(lambda transformer=transformer, queries=queries: transformer.transform(queries))
            for n_bank in (1600, 16_000):
                index = ExactIndex().fit(bank_rows[:n_bank])
                found = best_ms(lambda index=index, seen=seen: index.kneighbors(seen, 1))
                lines.append(f"| {title} | {n_bank} | {name} | {taken:.1f} | {found:.1f} | **{taken + found:.1f}** |")
                print(lines[-1], flush=True)
    return lines


def memory_of_fits(n_images: int) -> list[str]:
    """Return the table of peak memories."""
    cases = [
        ("none", "at once"), ("none", "two passes"), ("PatchWhitening(n_components=384)", "at once"),
        ("PatchWhitening(n_components=384)", "transformed"), ("PatchWhitening(n_components=384)", "two passes"),
        ("PCA(384)", "at once"),
    ]  # fmt: skip
    lines = [
        "| transformer | way | estimate | **peak** | seconds | bank (digest) |",
        "|---|---|---|---|---|---|",
    ]
    for name, way in cases:
        r = in_a_process(n_images, name, way)
        lines.append(
            f"| {name} | {way} | {r['estimate'] / 1e9:.2f} GB | **{r['peak'] / 1e9:.2f} GB** | {r['seconds']:.0f} "
            f"| `{r['bank'][:8]}` |"
        )
        print(lines[-1], flush=True)
    return lines


def differences() -> list[str]:
    """Return the table of the differences between a fit at once and a fit in parts."""
    import numpy as np

    from skpatchcore import LayerScaling, PatchWhitening

    lines = ["| transformer | largest relative difference of a result |", "|---|---|"]
    rows = made_up_rows(1, 20_000, 1536) + 5
    for transformer in (PatchWhitening(), PatchWhitening(n_components=150), LayerScaling((512, 1024))):
        at_once = type(transformer)(**transformer.get_params()).fit(rows).transform(rows[:2000])
        for part in np.array_split(rows, 37):
            transformer.partial_fit(part)
        change = np.abs(transformer.transform(rows[:2000]) - at_once).max() / np.abs(at_once).max()
        lines.append(f"| {transformer} | {change:.1e} |")
        print(lines[-1], flush=True)
    return lines


def flagged_good_images() -> list[str]:
    """Return the table of flagged new good images, for plans whose folds fit their own transformer, or share one."""
    import numpy as np

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, PatchWhitening, TorchFeatureExtractor

    extractor = TorchFeatureExtractor("efficientnet_lite2", image_size=None).fit()
    features = np.asarray(extractor.transform(textures(500)))
    new = features[300:]
    lines = [
        "| images | transformer | calibration | **flagged, promised 10 %** | mean calibration score / mean new score |",
        "|---|---|---|---|---|",
    ]
    for n_images in (15, 30, 100):
        for transformer in (None, PatchWhitening(), PatchWhitening(n_components=64)):
            for calibration in ("auto", "leave-one-out", 0.3):
                flagged, ratios = [], []
                for repeat in range(3):
                    detector = PatchCoreDetector(
                        "precomputed", transformer=transformer, calibration=calibration, contamination=0.1,
                        sampler=GreedyCoresetSampler(0.02), random_state=repeat,
                    )  # fmt: skip
                    detector.fit(features[100 * repeat : 100 * repeat + n_images])
                    scores = detector.score_samples(new)
                    flagged.append((scores < detector.offset_).mean())
                    ratios.append(detector.calibration_scores_.mean() / scores.mean())
                lines.append(
                    f"| {n_images} | {'none' if transformer is None else transformer} | {calibration} "
                    f"| **{np.mean(flagged):.0%}** | {np.mean(ratios):.3f} |"
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "whitening.md")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    import torch

    import skpatchcore

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # about leave-one-out and few images
    size = options.images * N_PATCHES * 1536 * 4 / 1e9
    lines = [
        "# Whitening",
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__.split('+')[0]}, skpatchcore "
        f"{skpatchcore.__version__}.",
        "",
        f"Time per image of {N_PATCHES} patches for the transformation and for the exact search of the nearest row, "
        "best of five calls. The rows of the banks are drawn at random.",
        "",
        *search_times(),
        "",
        f"Peak memory of a fit on {options.images} images with {N_PATCHES} patches of 1,536 channels: made-up features "
        f"of {size:.2f} GB, with 1 % of the patches in the bank and without calibration. The peak is the highest "
        "resident memory, including libraries, minus the memory of the interpreter at its start. There is no network, "
        "but the estimates include one. Equal digests mean equal banks.",
        "",
        *memory_of_fits(options.images),
        "",
        "The same transformer, fitted at once and in 37 parts (20,000 rows of 1,536 columns):",
        "",
        *differences(),
        "",
        "New good images that are flagged (200 crops of a texture, efficientnet_lite2, mean of three fits). With "
        "`calibration='auto'`, each fold fits its own transformer, and with 0.3, the held-out images are not used for "
        "the transformer. Leave-one-out uses the transformer of all images, and a warning says so: a ratio of the "
        "scores below 1 means that the images used for the calibration look more normal than new good images.",
        "",
        *flagged_good_images(),
        "",
        "Made by `python benchmarks/whitening.py`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if CHILD in sys.argv:
        fit(*json.loads(sys.argv[-1]))
    else:
        main()
