"""Compare time and results of two checkouts of this package, which run the same tasks in alternating processes.

python benchmarks/versions.py OTHER_CHECKOUT [--rounds 7]

The tasks use only public names that both checkouts have. WideResNet-50 has random weights from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "versions.md"

# The program of one process. It prints, as JSON, the seconds of each task, and figures that must be equal.
WORK = """
import json, sys, time, warnings
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("ignore")
import numpy as np, torch
from skpatchcore import ExactIndex, GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.datasets import make_textures
from skpatchcore.metrics import pixel_roc_auc_score

seconds, figures = {}, {}

def best(name, work, n):
    work()
    found = []
    for _ in range(n):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    seconds[name] = min(found)

rng = np.random.default_rng(0)
centres = rng.normal(size=(300, 384)).astype(np.float32)
rows = (centres[rng.integers(300, size=30000)] + 0.3 * rng.normal(size=(30000, 384))).astype(np.float32)
best("selection: 3,000 of 30,000 × 384", lambda: GreedyCoresetSampler(3000, random_state=0).fit(rows), 2)
index = ExactIndex().fit(rows[:16000])
queries = rows[-784:] + np.float32(0.05)
best("search: 784 queries in 16,000 × 384", lambda: index.kneighbors(queries, 1), 10)

images = (rng.random((12, 256, 256, 3)) * 255).astype(np.uint8)
wide = TorchFeatureExtractor("wide_resnet50_2", weights=None, crop_size=224)
detector = PatchCoreDetector(wide, sampler=GreedyCoresetSampler(0.1), random_state=0).fit(images)
best("latency: one image, score, WideResNet-50", lambda: detector.score_samples(images[:1]), 8)
best("latency: one image, score and map, WideResNet-50", lambda: detector.score_and_segment(images[:1]), 8)
small = TorchFeatureExtractor("efficientnet_lite2", image_size=None, crop_size=None)

task = make_textures("brick", random_state=0)
for calibration in ("leave-one-out", 5):
    begin = time.perf_counter()
    found = PatchCoreDetector(small, contamination=0.05, calibration=calibration, random_state=0)
    found.fit(task.train_images, groups=task.train_groups)
    seconds[f"fit: brick textures, efficientnet_lite2, calibration {calibration}"] = time.perf_counter() - begin
    begin = time.perf_counter()
    scores, maps = found.score_and_segment(task.test_images)
    seconds[f"predict: brick textures, efficientnet_lite2, calibration {calibration}"] = time.perf_counter() - begin
    good = task.test_labels == 1
    figures[f"good images flagged, calibration {calibration}"] = float((scores < found.offset_)[good].mean())
    figures[f"defects found, calibration {calibration}"] = float((scores < found.offset_)[~good].mean())
    figures[f"threshold, calibration {calibration}"] = found.offset_
    figures[f"pixel AUROC, calibration {calibration}"] = pixel_roc_auc_score(list(task.test_masks), list(maps))
print(json.dumps({"seconds": seconds, "figures": figures}))
"""


def run(checkout: Path) -> dict[str, dict[str, float]]:
    """Run the tasks in a process that imports the package from the checkout; return seconds and figures."""
    with tempfile.TemporaryDirectory() as elsewhere:
        text = subprocess.run(
            [sys.executable, "-c", WORK, str(checkout)],
            capture_output=True,
            text=True,
            check=True,
            cwd=elsewhere,
            timeout=7200,
        ).stdout
    found: dict[str, dict[str, float]] = json.loads(text)
    return found


def main() -> None:
    """Run both checkouts alternately in several rounds, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    checkouts = {"before": options.other.resolve(), "after": Path(__file__).resolve().parents[1]}
    rounds = [
        {name: run(checkouts[name]) for name in (("before", "after") if i % 2 else ("after", "before"))}
        for i in range(options.rounds)
    ]
    lines = []
    for name in rounds[0]["before"]["seconds"]:
        before, after = (np.array([r[which]["seconds"][name] for r in rounds]) for which in ("before", "after"))
        lines.append(
            {
                "task": name,
                "before, s": f"{before.min():.4g}",
                "after, s": f"{after.min():.4g}",
                "after / before": f"{after.min() / before.min():.3f}",
                "median of ratios": f"{np.median(after / before):.3f}",
            }
        )
    same = all(r["before"]["figures"] == r["after"]["figures"] for r in rounds)
    figures = rounds[0]["after"]["figures"]
    text = [
        "# Two versions side by side",
        "",
        f"This page is made by `python benchmarks/versions.py OTHER_CHECKOUT` with {options.rounds} rounds. Each round "
        "runs one process per version, in alternating order. Seconds are from the fastest round. The last column "
        "is the median over the rounds of the ratio after / before. The backbones are WideResNet-50 with random "
        "weights and efficientnet_lite2 with pretrained weights.",
        "",
        _table(pd.DataFrame(lines)),
        "",
        f"The following figures of both versions are {'bit-identical' if same else '**not equal**'}:",
        "",
        _table(pd.DataFrame({"figure": list(figures), "value": [f"{v:.6g}" for v in figures.values()]})),
        "",
    ]
    RESULTS.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


def _table(frame: pd.DataFrame) -> str:
    """Return the table in Markdown."""
    head = ["| " + " | ".join(frame.columns) + " |", "|---" * len(frame.columns) + "|"]
    return "\n".join(head + ["| " + " | ".join(map(str, row)) + " |" for row in frame.to_numpy()])


if __name__ == "__main__":
    main()
