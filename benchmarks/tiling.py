"""Compare tiles of large images with whole images: features, scores, memory, and a fit of 12-megapixel images.

    python benchmarks/tiling.py -o benchmarks/results/tiling.md
    python benchmarks/tiling.py --scores -o benchmarks/results/tiling_scores.md
    python benchmarks/tiling.py --large 200 -o benchmarks/results/tiling_large.md

The first command compares features, and measures the peak memory of one image of 20 megapixels. Each memory measurement
runs in a separate process. The second command compares scores of detectors. The third command fits a detector on images
of 3000×4000 pixels at full resolution within 8 GB. It writes the images to a temporary folder. They are made from a
photograph of scikit-image with a seeded generator, one image after the other.
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


def compare_features(backbone: str, weights: str | None, size: tuple[int, int]) -> list[dict]:
    """Return the largest differences of features of tiles from those of the whole image, for several margins."""
    import torch

    from skpatchcore import TorchFeatureExtractor
    from skpatchcore.features.tiling import plan_tiles, stitched_maps

    extractor = TorchFeatureExtractor(backbone, weights=weights, image_size=None, crop_size=None, tile_size=None)
    device = torch.device("cpu")
    forward = extractor._forward_pass(extractor._load(device), device)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (forward.mean, forward.std))
    image = (torch.from_numpy(textured(size, 0)).permute(2, 0, 1) / 255 - mean) / std

    def run(tiles: list) -> list:
        batch = torch.stack(tiles).contiguous(memory_format=torch.channels_last)
        return forward._outputs(batch)

    rows = []
    with torch.inference_mode():
        whole = forward._aggregated(run([image]))
        for margin in (1.0, 0.5, 0.25, 0.0):
            plan = plan_tiles(forward.network, size, 512, forward._outputs, device, torch.float32, margin)
            tiled = forward._aggregated(stitched_maps(plan, image, run, 1))
            difference = abs(tiled - whole)
            row, column = plan.rows[1], plan.columns[1]
            rows.append(
                {
                    "margin": margin,
                    "plan": str(plan),
                    "pixels": max(cut.of_tile[-1].start for cut in (row, column)) * 16,
                    "largest": float(difference.max() / abs(whole).max()),
                    "changed": float((difference.max(-1) > 1e-5 * abs(whole).max()).mean()),
                }
            )
    return rows


def compare_scores(backbone: str, weights: str | None, texture: str) -> dict:
    """Return the largest differences of scores and thresholds between detectors fitted with and without tiles."""
    import numpy as np

    from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor

    images = [textured((600, 700), i, texture) for i in range(8)]
    new = [textured((600, 700), 100 + i, texture) for i in range(4)]
    for i, image in enumerate(new):
        image[200 : 210 + 5 * i, 300 : 310 + 5 * i] = 20
    fitted = []
    for tile_size in (None, 512):
        extractor = TorchFeatureExtractor(
            backbone, weights=weights, image_size=None, crop_size=None, tile_size=tile_size, batch_size=1
        )
        detector = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(500), random_state=0).fit(images)
        fitted.append((detector.score_samples(new), detector.offset_, detector.segment(new)))
    (whole, threshold, maps), (tiled, tiled_threshold, tiled_maps) = fitted
    largest = max(abs(a - b).max() / abs(a).max() for a, b in zip(maps, tiled_maps, strict=True))
    return {
        "scores": float(np.abs(tiled - whole).max() / np.abs(whole).max()),
        "threshold": float(abs(tiled_threshold - threshold) / abs(threshold)),
        "maps": float(largest),
    }


def measure_memory(backbone: str, size: tuple[int, int], tile_size: object, batch_size: int) -> None:
    """Extract the features of one image in this process; print time and memory as JSON."""
    image = textured(tuple(size), 0)
    import torch

    from skpatchcore import TorchFeatureExtractor

    extractor = TorchFeatureExtractor(
        backbone, weights=None, image_size=None, crop_size=None, tile_size=tile_size, batch_size=batch_size
    )
    device = torch.device("cpu")
    forward = extractor._forward_pass(extractor._load(device), device)
    plan = forward.plan_of(tuple(size))
    before, start = resident(), time.perf_counter()
    features = extractor.transform([image])
    seconds = time.perf_counter() - start
    print(json.dumps({"plan": str(plan), "peak": peak_resident() - before, "features": features.nbytes, "s": seconds}))


def header() -> str:
    """Return a sentence with the facts of the machine and the versions."""
    import torch

    import skpatchcore

    return (
        f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread, torch {torch.__version__.split('+')[0]}, "
        f"skpatchcore {skpatchcore.__version__}. Images are made of mirrored pieces of a photograph of scikit-image."
    )


# Backbones and their weights; None are random weights.
NETWORKS = (
    ("resnet18", None),
    ("resnet50", None),
    ("wide_resnet50_2", None),
    ("efficientnet_lite2", "DEFAULT"),
)


def compare(output: Path) -> None:
    """Compare tiles with whole images, measure memory, and write the tables."""
    lines = [
        "# Tiles of large images",
        "",
        header(),
        "",
        "**Features of tiles against features of the whole image.** One image of 900×1100 pixels, tile_size "
        "512, default "
        "layers. The margin is the part of a tile's border that is discarded, as a fraction of the derived "
        "margin, which "
        "covers the receptive field. The difference is given relative to the largest feature. A patch counts as "
        "changed "
        "if any of its values differs by more than 0.00001 of the largest feature.",
        "",
        "| backbone | weights | margin | discarded at the start of a tile | tiles | largest difference | "
        "changed patches |",
        "|---|---|---|---|---|---|---|",
    ]

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        output.write_text("\n".join([*lines, "", "Made by `python benchmarks/tiling.py`.", ""]), encoding="utf-8")

    for backbone, weights in NETWORKS:
        kind = "random" if weights is None else "pretrained"
        for r in compare_features(backbone, weights, (900, 1100)):
            add(
                f"| {backbone} | {kind} | {r['margin']:g} | {r['pixels']} pixels | {r['plan']} | {r['largest']:.2g} "
                f"| {r['changed']:.1%} |"
            )
    lines += [
        "",
        "**Peak memory of one image**, in addition to the memory before the extraction, in a separate process. "
        "The features "
        "are part of the peak. Random weights.",
        "",
        "| backbone | image | tile_size | batch_size | tiles | features | **peak** | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = {"efficientnet_lite0": (4000, 5000), "wide_resnet50_2": (2000, 2500)}
    for backbone in whole:
        for size, tile_size, batch_size in (
            ((4000, 5000), "auto", 1),
            ((4000, 5000), 1024, 1),
            (whole[backbone], None, 1),
        ):
            r = in_a_process("measure_memory", backbone, size, tile_size, batch_size)
            add(
                f"| {backbone} | {size[0]}×{size[1]} | {tile_size} | {batch_size} | {r['plan']} "
                f"| {r['features'] / 1e9:.2f} GB | **{r['peak'] / 1e9:.2f} GB** | {r['s']:.0f} |"
            )


def scores(output: Path) -> None:
    """Compare the scores of detectors that are fitted with and without tiles, and write the table."""
    lines = [
        "# Scores of detectors that are fitted on tiles and on whole images",
        "",
        header(),
        "",
        "PatchCore detectors are fitted on 8 images of 600×700 pixels, with tile_size 512 and without tiles. Four new "
        "images with a dark square are scored. Differences are relative to the largest value.",
        "",
        "| backbone | weights | texture | scores | threshold | anomaly maps |",
        "|---|---|---|---|---|---|",
    ]
    for backbone, weights in NETWORKS:
        for texture in ("brick", "grass", "gravel") if weights == "DEFAULT" else ("brick",):
            r = compare_scores(backbone, weights, texture)
            kind = "random" if weights is None else "pretrained"
            lines.append(
                f"| {backbone} | {kind} | {texture} | {r['scores']:.2g} | {r['threshold']:.2g} | {r['maps']:.2g} |"
            )
            print(lines[-1], flush=True)
    output.write_text("\n".join([*lines, "", "Made by `python benchmarks/tiling.py --scores`.", ""]), encoding="utf-8")


def large(n_images: int, output: Path, n_selected: int, max_memory: str) -> None:
    """Fit on images of 12 megapixels and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        r = in_a_process("fit_large", n_images, folder, max_memory, n_selected, True)
    s = r["stages"]
    lines = [
        "# Fit of 12-megapixel images at full resolution",
        "",
        header(),
        "",
        f"PatchCoreDetector with efficientnet_lite0 (pretrained), image_size=None, tile_size='auto', a bank of "
        f"{r['n_bank']} patches of {r['n_channels']} channels, max_memory={max_memory}, batch_size=1, and a "
        "cache of the layer maps on disk. The images are JPEG files of 3000×4000 pixels. The peak is the highest "
        "resident memory.",
        "",
        "| images | calibration | **peak** | minutes | seconds by stage |",
        "|---|---|---|---|---|",
        f"| {r['images']} | {r['plan']} | **{r['peak'] / 1e9:.2f} GB** | {r['seconds'] / 60:.0f} "
        f"| {', '.join(f'{name} {seconds:.0f}' for name, seconds in s.items())} |",
        "",
        f"Made by `python benchmarks/tiling.py --large {n_images}`.",
        "",
    ]
    output.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Run the measurements and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--large", type=int, metavar="N", help="fit on N images of 12 megapixels instead")
    parser.add_argument("--scores", action="store_true", help="compare scores of detectors instead")
    parser.add_argument("--rows", type=int, default=5000, help="rows of the memory bank of --large")
    parser.add_argument("--max-memory", default="7GB", help="memory limit of --large")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    if options.scores:
        scores(options.output or results / "tiling_scores.md")
    elif options.large:
        large(options.large, options.output or results / "tiling_large.md", options.rows, options.max_memory)
    else:
        compare(options.output or results / "tiling.md")


if __name__ == "__main__":
    if CHILD in sys.argv:
        name, *arguments = json.loads(sys.argv[-1])
        globals()[name](*arguments)
    else:
        main()
