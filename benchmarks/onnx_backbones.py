"""Export detectors with a network of each family, and compare the exported files with the detectors.

    python benchmarks/onnx_backbones.py -o benchmarks/results/onnx_backbones.md
    python benchmarks/onnx_backbones.py --all -o all_backbones.md

All networks have random weights: the results are valid for the agreement only. Networks that accept images of one size
only, or whose windows depend on the size, see images of 224×224 pixels. All others see images of any size.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torchvision

import skpatchcore
from skpatchcore import ExportError, GreedyCoresetSampler, ImageError, PatchCoreDetector, TorchFeatureExtractor

FAMILIES = (
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "alexnet", "convnext_tiny", "densenet121",
    "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_large", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
# The weights of these networks take more than 1 GB.
LARGE = ("vit_h", "vit_l", "regnet_y_128")


def pictures(n: int) -> np.ndarray:
    """Return images of shape (n, 256, 300, 3), uint8, with a coloured wave and noise."""
    rng = np.random.default_rng(0)
    wave = 120 + 40 * np.sin(np.linspace(0, 9, 300)[None, :, None] + np.arange(3))
    return np.clip(wave + rng.normal(0, 6, (n, 256, 300, 3)), 0, 255).astype(np.uint8)


def exported(name: str, path: Path) -> tuple[str, list[skpatchcore.Verification]]:
    """Export a detector and return the sizes of its images, and the verifications; an error as the text."""
    images = pictures(6)
    problem = ""
    for image_size, title in ((224, "any"), ((224, 224), "224×224")):
        extractor = TorchFeatureExtractor(name, weights=None, image_size=image_size)
        sampler = GreedyCoresetSampler(0.05)
        try:
            detector = PatchCoreDetector(extractor, sampler=sampler, random_state=0, calibration=0.4).fit(images)
            skpatchcore.export(detector, path)
            return title, [skpatchcore.verify(path, detector=detector, images=images)]
        except (ExportError, ImageError) as error:
            problem = str(error)
    return problem, []


def main() -> None:
    """Export all networks and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="all networks, except those of more than 1 GB")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    every = [*FAMILIES[:3], *torchvision.models.list_models(module=torchvision.models)]
    names = [name for name in every if not name.startswith(LARGE)] if given.all else list(FAMILIES)
    packages = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "torchvision", "onnxruntime", "openvino")
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parts.onnx"
        for name in names:
            title, verifications = exported(name, path)
            cells = [title]
            for verification in verifications:
                for runtime in ("onnxruntime", "openvino"):
                    checks = [check for check in verification.checks if check.runtime.startswith(runtime)]
                    largest = max(stage.difference for check in checks for stage in check.stages)
                    cells.append(f"{largest:.0e}{'' if all(check.is_passed for check in checks) else ' OFF'}")
                cells.append(f"{path.stat().st_size / 1e6:.0f}")
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
            given.output.write_text(
                f"""# Exported networks

Made by `benchmarks/onnx_backbones.py` with {packages}. PatchCore, random weights, 5 % of the patches of 4 images.
Largest relative difference of any stage from the detector, on golden images and on 6 images.

| network | image sizes | ONNX Runtime | OpenVINO | MB |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
            )


if __name__ == "__main__":
    main()
