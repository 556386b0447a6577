"""Measure the time of one image in torch, ONNX Runtime and OpenVINO, side by side.

    python benchmarks/onnx_speed.py PATH/TO/mtd -o benchmarks/results/onnx_speed.md

Detectors are fitted on images of Magnetic Tile Defects and exported. Each runner has its own process. The processes
take turns: one of them scores one image, then the next one scores the same image. A pause before each call lets the
threads of the previous runner fall asleep. WideResNet-50 has random weights: its rows are valid for speed only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor, list_images

TASKS = ("score", "score and map", "features")
# Height and width of the images.
SIZES = ((256, 256), (256, 512), (384, 320), (512, 512))
BACKBONES = {"efficientnet_lite2": "DEFAULT", "wide_resnet50_2": None}


@dataclass(frozen=True)
class Job:
    """Model file, runtime and settings of the runtime that a process runs."""

    name: str
    path: str
    runtime: str
    hint: str | None = None


def calls_of(job: Job, n_threads: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """Return the function of each task, for one image of shape (height, width, 3), uint8."""
    if job.runtime == "torch":
        import torch

        torch.set_num_threads(n_threads)
        detector: Any = skpatchcore.load(job.path)
        features = lambda image: detector.extractor_.transform([image])  # noqa: E731
    else:
        detector = skpatchcore.OnnxDetector(job.path, runtime=job.runtime, n_threads=n_threads)
        runner = detector._graph._runner
        if job.hint is not None:
            runner._config["INFERENCE_PRECISION_HINT"] = job.hint
        features = lambda image: runner.run(image[None], ["features"])  # noqa: E731
    return {
        "score": lambda image: float(detector.score_samples([image])[0]),
        "score and map": lambda image: detector.score_and_segment([image]),
        "features": features,
    }


def serve(job: Job, n_threads: int, images: Sequence[np.ndarray], connection: Connection) -> None:
    """Answer requests for a task and an image with the seconds of one call, and the score of the image."""
    warnings.simplefilter("ignore")
    calls = calls_of(job, n_threads)
    for task in TASKS:
        for image in images:
            calls[task](image)
            calls[task](image)
    connection.send("ready")
    while (request := connection.recv()) is not None:  # None ends the process
        task, number = request
        start = time.perf_counter()
        result = calls[task](images[number])
        connection.send((time.perf_counter() - start, result if task == "score" else None))


@contextmanager
def processes(jobs: Sequence[Job], n_threads: int, images: Sequence[np.ndarray]) -> Iterator[list[Connection]]:
    """Start one process per job, one after the other, and end them at the end of the block."""
    context = multiprocessing.get_context("spawn")
    started, connections = [], []
    try:
        for job in jobs:
            own, other = context.Pipe()
            process = context.Process(target=serve, args=(job, n_threads, images, other), daemon=True)
            process.start()
            started.append(process)
            other.close()
            own.recv()
            connections.append(own)
        yield connections
    finally:
        for connection in connections:
            connection.send(None)
        for process in started:
            process.join(timeout=60)


def measure(
    jobs: Sequence[Job], n_threads: int, images: Sequence[np.ndarray], repetitions: int, pause: float
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the seconds of each task, of shape (n_jobs, n_rounds), and the scores, of shape (n_jobs, n_images)."""
    rounds = [(number, r) for r in range(repetitions) for number in range(len(images))]
    seconds = {task: np.empty((len(jobs), len(rounds))) for task in TASKS}
    scores = np.empty((len(jobs), len(images)))
    with processes(jobs, n_threads, images) as connections:
        for column, (number, _) in enumerate(rounds):
            for task, (row, connection) in product(TASKS, list(enumerate(connections))):
                time.sleep(pause)
                connection.send((task, number))
                seconds[task][row, column], score = connection.recv()
                if score is not None:
                    scores[row, number] = score
    return seconds, scores


def jobs_of(detector: Any, good: Sequence[str], folder: Path) -> tuple[list[Job], dict[str, int]]:
    """Write the files of a detector; return the runners, and the sizes of the files in bytes by runner."""
    skops, plain, small = folder / "parts.skops", folder / "parts.onnx", folder / "int8.onnx"
    skpatchcore.save(detector, skops)
    skpatchcore.export(detector, plain)
    skpatchcore.export(detector, small, precision="int8", good_images=good, max_flipped=1.0)
    jobs = [
        Job("torch", str(skops), "torch"),
        Job("ONNX Runtime", str(plain), "onnxruntime"),
        Job("OpenVINO", str(plain), "openvino"),
        Job("ONNX Runtime, int8", str(small), "onnxruntime"),
        Job("OpenVINO, int8", str(small), "openvino"),
    ]
    if has_bfloat16():
        jobs.insert(3, Job("OpenVINO, bfloat16", str(plain), "openvino", "bf16"))
    return jobs, {job.name: Path(job.path).stat().st_size for job in jobs}


def has_bfloat16() -> bool:
    """Return whether OpenVINO can compute in bfloat16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def processor() -> str:
    """Return the name of the processor, and its instructions for short numbers."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return "unknown processor"
    lines = dict([part.strip() for part in line.split(":", 1)] for line in path.read_text().splitlines() if ":" in line)
    kinds = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    found = [kind for kind in kinds if kind in lines.get("flags", "").split()]
    return f"{lines.get('model name', 'unknown processor')} ({', '.join(found)})"


def rows_of(
    title: str, jobs: Sequence[Job], sizes: dict[str, int], seconds: dict[str, np.ndarray], scores: np.ndarray
) -> list[str]:
    """Return the table rows of a detector. A ratio is the median of the ratios of the rounds."""
    rows = []
    for row, job in enumerate(jobs):
        cells = []
        for task in TASKS:
            ratio = np.median(seconds[task][0] / seconds[task][row])
            cells.append(f"{np.median(seconds[task][row]) * 1e3:.1f} | {ratio:.2f}×")
        change = np.max(np.abs(scores[row] / scores[0] - 1))
        rows.append(
            f"| {title} | {job.name} | {sizes[job.name] / 1e6:.1f} | {' | '.join(cells)} | "
            f"{'-' if row == 0 else f'{change:.0e}'} |"
        )
        print(rows[-1], flush=True)
    return rows


def page(rows: Sequence[str], given: argparse.Namespace) -> str:
    """Return the page of results."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "openvino"))
    sizes = ", ".join(f"{height} × {width}" for height, width in SIZES)
    n_calls = given.repetitions * len(SIZES)
    columns = "".join(f" {task}: ms | × |" for task in TASKS)
    return f"""# Speed of exported files

{processor()}, {os.cpu_count()} cores, {given.threads} threads per runner. {packages}.

One image per call: uint8 arrays of {sizes} pixels, in turn. The extractor resizes them to 256 × 256. The memory banks
hold 1 % and 10 % of the patches of {given.images} images. Each runner has its own process. The processes take turns,
with a pause of {given.pause * 1e3:.0f} ms before each call. Times are medians of {n_calls} calls in milliseconds. "×"
is the speed relative to torch: the median of the ratios of two calls in the same round. "features" is the network with
resizing and aggregation: from an image to its patch features, without the search. ONNX Runtime computes all outputs of
a graph, so its column "features" contains the search, too. The last column is the largest relative difference of a
score from that of torch. WideResNet-50 has random weights.

| backbone, rows of the bank | runner | MB of the file |{columns} difference of a score |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

OpenVINO with bfloat16 is measured only if the processor supports it. `OnnxDetector` does not use it, because it changes
scores.

Made by `python benchmarks/onnx_speed.py PATH/TO/mtd`.
"""


def main() -> None:
    """Fit, export and time each detector, and write the page after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the data set mtd")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "onnx_speed.md")
    parser.add_argument("--images", type=int, default=100, help="number of training images")
    parser.add_argument("--repetitions", type=int, default=15, help="number of calls per image, task and runner")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each call")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the processes of the runners
    warnings.simplefilter("ignore")
    good = list_images(given.root / "train" / "good")[: given.images]
    tests = list_images(given.root / "test" / "crack")[: len(SIZES)]
    images = [
        np.asarray(Image.open(path).convert("RGB").resize((width, height)))
        for path, (height, width) in zip(tests, SIZES, strict=True)
    ]
    rows: list[str] = []
    for backbone, ratio in product(given.backbones, (0.01, 0.1)):
        extractor = TorchFeatureExtractor(backbone, weights=BACKBONES[backbone], image_size=(256, 256))
        detector = PatchCoreDetector(
            extractor, sampler=GreedyCoresetSampler(ratio), calibration="leave-one-out", random_state=0
        ).fit(good)
        with tempfile.TemporaryDirectory() as folder:
            jobs, sizes = jobs_of(detector, good, Path(folder))
            seconds, scores = measure(jobs, given.threads, images, given.repetitions, given.pause)
        rows += rows_of(f"{backbone}, {len(detector.memory_bank_)}", jobs, sizes, seconds, scores)
        given.output.write_text(page(rows, given), encoding="utf-8")


if __name__ == "__main__":
    main()
