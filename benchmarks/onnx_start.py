"""Measure the start of `skpatchcore predict` with an exported file and with a model file: seconds and resident memory.

    python benchmarks/onnx_start.py -o benchmarks/results/onnx_start.md

Each run is a fresh process that scores one image and writes its heat map. The commands take turns. The images are crops
of scikit-image's textures. WideResNet-50 has random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from devices import make_images
from onnx_speed import BACKBONES, processor
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor

PROGRAM = Path(__file__).parent.parent / "examples" / "deployment" / "score_image.py"


# Program of a small process that runs a command. The largest memory of a child includes that of its parent at the fork.
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def run(command: Sequence[str], threads: int) -> tuple[float, int]:
    """Run a command; return its seconds and its largest resident memory in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, env=environment, check=True, capture_output=True, text=True)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory * (1 if sys.platform == "darwin" else 1024)


def measured(commands: dict[str, Sequence[str]], repeats: int, threads: int) -> dict[str, tuple[float, float]]:
    """Return the medians of seconds and bytes of each command. One run before fills the cache of the disk."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for number in range(repeats + 1):
        for name, command in commands.items():
            result = run(command, threads)
            if number > 0:
                found[name].append(result)
    return {name: (median(s for s, _ in runs), median(b for _, b in runs)) for name, runs in found.items()}


def main() -> None:
    """Fit and export each detector, run the commands, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "onnx_start.md")
    parser.add_argument("--images", type=int, default=100, help="number of training images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    images, rows = make_images(given.images), []
    predict = [sys.executable, "-m", "skpatchcore", "predict"]
    for backbone in given.backbones:
        extractor = TorchFeatureExtractor(backbone, weights=BACKBONES[backbone])
        detector = PatchCoreDetector(
            extractor, sampler=GreedyCoresetSampler(0.1), calibration="leave-one-out", random_state=0
        ).fit(images)
        with tempfile.TemporaryDirectory() as folder:
            skops, onnx, image, results = (str(Path(folder) / name) for name in ("a.skops", "a.onnx", "a.png", "out"))
            skpatchcore.save(detector, skops)
            skpatchcore.export(detector, onnx)
            Image.fromarray(images[0]).save(image)
            commands = {
                "`predict parts.skops`": [*predict, skops, image, "-o", results, "--quiet"],
                "`predict parts.onnx`": [*predict, onnx, image, "-o", results, "--quiet"],
                "`score_image.py parts.onnx`": [sys.executable, str(PROGRAM), onnx, image],
            }
            found = measured(commands, given.repeats, given.threads)
            base_seconds, base_bytes = next(iter(found.values()))
            for (name, (seconds, n_bytes)), path in zip(found.items(), (skops, onnx, onnx), strict=True):
                rows.append(
                    f"| {backbone}, {len(detector.memory_bank_)} | {name} | {Path(path).stat().st_size / 1e6:.1f} "
                    f"| {seconds:.2f} | {seconds / base_seconds:.2f}× | {n_bytes / 1e6:.0f} "
                    f"| {n_bytes / base_bytes:.2f}× |"
                )
                print(rows[-1], flush=True)
        given.output.write_text(page(rows, given), encoding="utf-8")


def page(rows: Sequence[str], given: argparse.Namespace) -> str:
    """Return the page of results."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    machine = f"{processor()}, {os.cpu_count()} cores, {given.threads} threads"
    return f"""# Start of exported files

{machine}, Python {platform.python_version()}, {packages}.

Each run is a fresh process that scores one image of 224 × 224 pixels and writes its heat map, from its start to its
end. The files are in the cache of the disk. Values are medians of {given.repeats} runs, and the commands take turns.
The memory is the largest resident memory. The memory banks hold 10 % of the patches of {given.images} images.
`score_image.py` is the program in `examples/deployment` that does not use this package. WideResNet-50 has random
weights.

| backbone, rows of the bank | command | MB of the file | seconds | relative | MB of memory | relative |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Files of `save` do not contain the network: it is loaded from its package, or initialised.

Made by `python benchmarks/onnx_start.py`.
"""


if __name__ == "__main__":
    main()
