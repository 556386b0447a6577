"""Time the search for the nearest row of the memory bank, for the 784 patches of one image, with several libraries.

    python benchmarks/search.py PATH/TO/mtd -o benchmarks/results/search.md

The features are real patch features. A bank holds the first rows in the order of the greedy selection. The queries are
the patches of three test images, two of which are defective. The compared methods are the distances of all pairs (as in
anomalib 2.7), faiss, scikit-learn and pynndescent. faiss is left out if it is not installed. Every time is the best of
3 to 25 calls, after a warm-up call.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

import skpatchcore
from skpatchcore import ExactIndex, GreedyCoresetSampler, PyNNDescentIndex, TorchFeatureExtractor, list_images
from skpatchcore.index._speeds import measured_speeds

try:
    import faiss
except ImportError:
    faiss = None

FEATURES = {
    "168, outputs of stages 3 and 5 (efficientnet_lite2)": ("efficientnet_lite2", None),
    "720, depthwise outputs (efficientnet_lite0)": (
        "efficientnet_lite0",
        ("stage3.1.depthwise", "stage4.1.depthwise"),
    ),
    "1392, expanded outputs (efficientnet_lite0)": (
        "efficientnet_lite0",
        ("stage3.1.expand", "stage4.1.expand", "stage5.1.expand"),
    ),
    "1536, depthwise outputs (efficientnet_lite2)": (
        "efficientnet_lite2",
        ("stage3.1.depthwise", "stage4.1.depthwise", "stage5.1.depthwise"),
    ),
}
N_PATCHES = 784
# Number of values (rows × columns) in a bank above which building a graph takes many minutes.
MAX_GRAPH = 26_000_000


def all_pairs(bank: torch.Tensor, queries: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute the Euclidean distances of all pairs; return distance and index of the nearest row for each query."""
    squares = queries.pow(2).sum(1, keepdim=True) - 2 * queries @ bank.T + bank.pow(2).sum(1)
    found = squares.clamp_min(0).sqrt().min(1)
    return found.values.numpy(), found.indices.numpy()


def ivfpq(bank: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a search function of faiss's inverted file with product quantisation that probes 1/16 of the lists."""
    n_lists = int(2 ** round(np.log2(4 * np.sqrt(len(bank)))))
    n_codes = max(m for m in (8, 12, 16, 24, 48, 96) if bank.shape[1] % m == 0)
    index = faiss.index_factory(bank.shape[1], f"IVF{n_lists},PQ{n_codes}x8")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index.train(bank)
    index.add(bank)
    index.nprobe = max(1, n_lists // 16)
    return lambda queries: index.search(queries, 1)[1][:, 0]


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Return the shortest time of 3 to 25 calls in milliseconds, and the result of the last call."""
    times, found = [], None
    end = time.perf_counter() + 1
    while len(times) < 3 or (len(times) < 25 and time.perf_counter() < end):
        start = time.perf_counter()
        found = function()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3, found


def compare(bank: np.ndarray, images: np.ndarray) -> dict[str, tuple[float, float | None]]:
    """Return for each method the milliseconds per image and its recall, the fraction of true nearest rows found."""
    tensor = torch.from_numpy(bank)
    exact = ExactIndex().fit(bank)
    brute = NearestNeighbors(algorithm="brute").fit(bank)
    contenders: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ExactIndex": lambda q: exact.kneighbors(q, 1)[1][:, 0],
        "farthest only": lambda q: exact.farthest(q, np.array([0, len(q)])),
        "all pairs": lambda q: all_pairs(tensor, torch.from_numpy(q))[1],
        "scikit-learn": lambda q: brute.kneighbors(q, 1)[1][:, 0],
    }
    if bank.size <= MAX_GRAPH:
        graph = PyNNDescentIndex(random_state=0).fit(bank)
        contenders["PyNNDescentIndex"] = lambda q: graph.kneighbors(q, 1)[1][:, 0]
    if faiss is not None:
        flat = faiss.IndexFlatL2(bank.shape[1])
        flat.add(bank)
        contenders["faiss flat"] = lambda q: flat.search(q, 1)[1][:, 0]
        contenders["faiss IVFPQ"] = ivfpq(bank)
    truth = [contenders["ExactIndex"](q) for q in images]
    results = {}
    for name, search in contenders.items():
        search(images[0][:32])
        found = [timed(lambda q=q, search=search: search(q)) for q in images]
        recall = None
        if name != "farthest only":
            recall = np.mean([_is_as_near(bank, q, f[1], t) for q, f, t in zip(images, found, truth, strict=True)])
        results[name] = (float(np.mean([f[0] for f in found])), recall)
    return results


def _is_as_near(bank: np.ndarray, queries: np.ndarray, found: np.ndarray, truth: np.ndarray) -> float:
    """Return the fraction of queries for which the found row is as near as the true nearest row."""
    own, best = (np.linalg.norm(bank[i].astype(np.float64) - queries, axis=1) for i in (found, truth))
    return float((own <= best * (1 + 1e-6)).mean())


def main() -> None:
    """Extract features, time the search in banks of each size, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "search.md")
    parser.add_argument("--images", type=int, default=209)
    parser.add_argument("--banks", type=int, nargs="+", default=[1638, 16385, 163856])
    options = parser.parse_args()
    paths = list_images(options.root / "train" / "good")
    order = np.random.default_rng(0).permutation(len(paths))
    train = [paths[i] for i in order[: options.images]]
    test = [list_images(options.root / "test" / kind)[0] for kind in ("good", "blowhole", "crack")]
    precision = str(measured_speeds().fastest).removeprefix("torch.")
    lines = [
        "# Search",
        "",
        f"All times are milliseconds for {N_PATCHES} queries, which are the patches of one image of 224×224 pixels. "
        "Times are means over three test images of Magnetic Tile Defects. The banks hold patches of "
        f"{len(train)} training images. {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__.split('+')[0]}, faiss "
        f"{faiss.__version__ if faiss else 'absent'}, skpatchcore {skpatchcore.__version__}. `ExactIndex` computes its "
        f"bounds in {precision}. The number in brackets is the recall: the fraction of queries for which the nearest "
        "row was found. There is no bracket if the recall is exactly 1. For the largest banks, PyNNDescentIndex was "
        "left out, because its graph takes many minutes to build.",
        "",
        "| columns | rows | ExactIndex | ExactIndex, image scores only | all pairs | faiss flat | scikit-learn "
        "| PyNNDescentIndex | faiss IVFPQ | all pairs / ExactIndex | faiss flat / ExactIndex |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (backbone, layers) in FEATURES.items():
        extractor = TorchFeatureExtractor(backbone, layers=layers, image_size=(224, 224), crop_size=None)
        features = extractor.transform(train).reshape(options.images * N_PATCHES, -1)
        queries = extractor.transform(test).reshape(len(test), N_PATCHES, -1)
        chosen = GreedyCoresetSampler(min(16385, len(features)), random_state=0).fit(features).component_indices_
        rest = np.setdiff1d(np.arange(len(features)), chosen)
        features = features[np.concatenate([chosen, np.random.default_rng(0).permutation(rest)])]
        for n_bank in options.banks:
            results = compare(features[:n_bank], queries)

            def cell(key: str, results: dict = results) -> str:
                if key not in results:
                    return "-"
                ms, recall = results[key]
                return f"{ms:.1f}" + ("" if recall is None or recall == 1 else f" ({recall:.3f})")

            ours = results["ExactIndex"][0]
            ratios = [f"{results[p][0] / ours:.1f}×" if p in results else "-" for p in ("all pairs", "faiss flat")]
            lines.append(
                f"| {name} | {n_bank} | **{cell('ExactIndex')}** | {cell('farthest only')} | {cell('all pairs')} "
                f"| {cell('faiss flat')} | {cell('scikit-learn')} | {cell('PyNNDescentIndex')} | {cell('faiss IVFPQ')} "
                f"| {ratios[0]} | {ratios[1]} |"
            )
            print(lines[-1], flush=True)
    lines += ["", "Made by `python benchmarks/search.py PATH/TO/mtd`.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
