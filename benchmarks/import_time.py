"""Measure how long importing the package takes, compared with importing ``sklearn.base``.

python benchmarks/import_time.py -o benchmarks/results/import_time.md
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import sklearn

import skpatchcore

STATEMENTS = (
    "import sklearn.base",
    "import skpatchcore",
    "from skpatchcore import OneClassSplit",
    "from skpatchcore import PatchCoreDetector",
)


def main() -> None:
    """Time each statement in fresh processes, alternating between the statements, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "import_time.md")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {statement: [] for statement in ("pass", *STATEMENTS)}
    for _ in range(options.repeats):
        for statement, found in seconds.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, timeout=600)
            found.append(time.perf_counter() - begin)
    empty = median(seconds["pass"])
    base = median(seconds["import sklearn.base"]) - empty
    lines = [
        "# Import time",
        "",
        f"Each time is the median of {options.repeats} fresh processes. The interpreter's start "
        f"({empty * 1e3:.0f} ms) is subtracted.",
        "",
        "| statement | ms | relative to `import sklearn.base` |",
        "|---|---|---|",
        *(
            f"| `{s}` | {(median(seconds[s]) - empty) * 1e3:.0f} | {(median(seconds[s]) - empty) / base:.2f}× |"
            for s in STATEMENTS
        ),
        "",
        f"{platform.machine()}, Python {platform.python_version()}, scikit-learn {sklearn.__version__}, skpatchcore "
        f"{skpatchcore.__version__}. `import skpatchcore` does not load torch, torchvision, pynndescent, matplotlib or "
        "pandas. A test checks this.",
        "",
        "Made by `python benchmarks/import_time.py`.",
        "",
    ]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
