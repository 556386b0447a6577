"""Compare exported files with their detectors on real images: every stage, every decision, all precisions.

    python benchmarks/onnx_parity.py ../shared/data -o benchmarks/results/onnx_parity.md

The folder holds ``hazelnut_toy`` and ``mtd`` in the layout of MVTec AD. The detectors are compared in ONNX Runtime and
in OpenVINO on test images, on their own training images, and on test images that are resized to 2 to 20 times the size
of the network's input. Images of one size are also scored in batches of 7. Files with float16 weights and with int8
networks are compared by their decisions. WideResNet-50 has random weights here: its rows say nothing about accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, OnnxDetector, PaDiMDetector, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.images.reading import load_image

STAGES = ("pixels", "features", "patch_scores", "anomaly_map", "score", "decision", "p_value")


def images_of(data: Path, name: str, n_train: int, n_good: int, n_defective: int) -> tuple[list, list, np.ndarray]:
    """Return training images, test images and the labels of the test images."""
    rng = np.random.default_rng(0)

    def some(paths: list[Path], n: int) -> list[Path]:
        return [paths[i] for i in np.sort(rng.permutation(len(paths))[:n])]

    def found(pattern: str) -> list[Path]:
        return sorted(p for p in (data / name).glob(pattern) if p.suffix.lower() in (".png", ".jpg"))

    train, good = found("train/good/*"), found("test/good/*")
    if not train:  # all good images of the tiles are in one folder
        order = rng.permutation(len(good))
        train, good = [good[i] for i in order[n_good:]], [good[i] for i in order[:n_good]]
    defective = [p for p in found("test/*/*") if p.parent.name != "good"]
    good, defective = some(good, n_good), some(defective, n_defective)
    y = np.array([1] * len(good) + [-1] * len(defective))
    return [str(p) for p in some(train, n_train)], [str(p) for p in [*good, *defective]], y


def resized(paths: list[str], side: int) -> list[np.ndarray]:
    """Return images that are 2 to 20 times as large as the network's input, upright and across."""
    shapes = [(2, 2.6), (3.1, 2), (5.3, 4), (4, 7.7), (20, 12), (9, 20)]
    images = []
    for path, (down, across) in zip(paths, shapes, strict=False):
        size = (round(across * side), round(down * side))
        images.append(np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC)))
    return images


def detectors() -> dict[str, tuple]:
    """Return the detectors by description: (data set, number of training images, detector)."""

    def patchcore(ratio: float = 0.02, n_neighbors: int = 9, **extractor):
        sampler = GreedyCoresetSampler(ratio)
        return PatchCoreDetector(
            TorchFeatureExtractor(**extractor), sampler=sampler, n_neighbors=n_neighbors, random_state=0,
            calibration="leave-one-out",
        )  # fmt: skip

    lite2, lite0 = {"backbone": "efficientnet_lite2"}, {"backbone": "efficientnet_lite0"}
    wide = {"backbone": "wide_resnet50_2", "weights": None}
    padim = PaDiMDetector(TorchFeatureExtractor(**lite0, image_size=(256, 256)), random_state=0)
    return {
        "hazelnut, efficientnet_lite2": ("hazelnut_toy", 28, patchcore(**lite2)),
        "hazelnut, efficientnet_lite2, b = 1, 1024 channels, crop 224": (
            "hazelnut_toy", 28, patchcore(0.02, 1, **lite2, n_channels=1024, crop_size=224)
        ),
        "hazelnut, wide_resnet50_2 (random weights)": ("hazelnut_toy", 20, patchcore(0.01, **wide)),
        "hazelnut, PaDiM, efficientnet_lite0": ("hazelnut_toy", 28, padim),
        "tiles, efficientnet_lite2": ("mtd", 120, patchcore(0.01, **lite2)),
        "tiles, efficientnet_lite2, all rows": ("mtd", 12, patchcore(1.0, **lite2)),
    }  # fmt: skip


def stage_rows(case: str, path: Path, detector, sets: dict[str, list]) -> tuple[list[str], int, int, int]:
    """Return the table rows of a file, and the numbers of decisions, of flipped and of near ones."""
    rows, n, n_flipped, n_near = [], 0, 0, 0
    for runtime in ("onnxruntime", "openvino"):
        for title, images in sets.items():
            check = skpatchcore.verify(path, runtimes=[runtime], detector=detector, images=images).checks[-1]
            by_stage = {stage.stage: stage.difference for stage in check.stages}
            cells = " | ".join(f"{by_stage[stage]:.0e}" for stage in STAGES)
            d = check.decisions
            rows.append(f"| {case} | {runtime} | {title} ({d.n_images}) | {cells} | {d.n_flipped} | {d.n_near} |")
            n, n_flipped, n_near = n + d.n_images, n_flipped + d.n_flipped, n_near + d.n_near
    return rows, n, n_flipped, n_near


def batch_difference(path: Path, images: list) -> float:
    """Return the largest relative difference between scores in batches of 7 and one by one."""
    pictures = [load_image(image, 0) for image in images]
    shape = max({p.shape for p in pictures}, key=lambda s: sum(p.shape == s for p in pictures))
    same = [p for p in pictures if p.shape == shape][:14]
    one, seven = (OnnxDetector(path, batch_size=n).score_samples(same) for n in (1, 7))
    return float(np.max(np.abs(one - seven) / np.abs(one).max()))


def main() -> None:
    """Run the comparison and write the page after each detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with hazelnut_toy and mtd")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the descriptions of the detectors to run")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, precisions, sizes = [], [], []
    n = n_flipped = n_near = 0
    largest_batch = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case, (name, n_train, detector) in detectors().items():
            if given.only and not any(part in case for part in given.only):
                continue
            train, test, y = images_of(given.data, name, n_train, 40, 40)
            detector.fit(train)
            path = Path(folder) / "parts.onnx"
            report = skpatchcore.export(detector, path)
            sets = {"test": test, "training": train[:30], "resized": resized(test[-6:], 256)}
            found, *counts = stage_rows(case, path, detector, sets)
            rows += found
            n, n_flipped, n_near = n + counts[0], n_flipped + counts[1], n_near + counts[2]
            largest_batch = max(largest_batch, batch_difference(path, test))
            sizes.append((case, "float32", report.n_bytes))
            for precision in ("float16", "int8"):
                other = skpatchcore.export(
                    detector, path, precision=precision, good_images=train, test_images=test, y_test=y, max_flipped=1.0
                )
                d = other.decisions
                precisions.append(
                    f"| {case} | {precision} | {d.n_flipped} of {d.n_images} | {d.largest_difference:.1e} | "
                    f"{d.auroc_original:.4f} | {d.auroc:.4f} | {d.auroc - d.auroc_original:+.4f} |"
                )
                sizes.append((case, precision, other.n_bytes))
            print(case, flush=True)
            given.output.write_text(page(rows, precisions, sizes, (n, n_flipped, n_near), largest_batch))


def page(rows: list[str], precisions: list[str], sizes: list[tuple], counts: tuple, largest_batch: float) -> str:
    """Return the page of results."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "onnxruntime", "openvino", "onnx"))
    in_mb = "\n".join(f"| {case} | {precision} | {n / 1e6:.1f} |" for case, precision, n in sizes)
    return f"""# Exported files against their detectors

Made by `benchmarks/onnx_parity.py` with {packages}. Real images: hazelnut (toy version) and Magnetic Tile Defects.

## float32

Largest difference of each stage, divided by the largest value of the detector for the same image (scores and maps: at
least the threshold). "resized": test images at 2 to 20 times the size of the network's input, upright and across. A
decision is "near" if it flips and its score is within 1e-5 of the threshold.

**{counts[1]} of {counts[0]} decisions flipped, and {counts[2]} near ones.** Scores in batches of 7 differ from scores
one by one by at most {largest_batch:.0e} of the largest score.

| detector | runtime | images | {" | ".join(STAGES)} | flipped | near |
|---|---|---|{"---|" * len(STAGES)}---|---|
{chr(10).join(rows)}

## float16 and int8

ONNX Runtime, on the test images. The difference of a score is a fraction of the threshold.

| detector | precision | flipped | largest difference | AUROC of the detector | AUROC of the file | change |
|---|---|---|---|---|---|---|
{chr(10).join(precisions)}

## File sizes

| detector | precision | MB |
|---|---|---|
{in_mb}
"""


if __name__ == "__main__":
    main()
