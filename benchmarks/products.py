"""Measure a detector of several products: recognition, images of other products, and decisions against one per product.

    python benchmarks/products.py PATH/TO/data --cache CACHE -o benchmarks/results/products.md

The products are Magnetic Tile Defects (``mtd``, random split, 150 training images), ``hazelnut_toy``, three textures of
scikit-image, and two rendered surfaces with transplanted defects (see ``settings.py`` and ``_transplants.py``). The
folder CACHE keeps the outputs of the network.

1. One MultiProductDetector is fitted on all products. Its decisions are compared with those of the detectors of the
   single products, which know the product.
2. For each product, a detector is fitted without it. Images of this product should show none of the products.
3. The time per image is measured side by side with a detector of one product, in alternating rounds.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from settings import SIDE, data_sets
from sklearn.metrics import roc_auc_score

from skpatchcore import GreedyCoresetSampler, MultiProductDetector, PatchCoreDetector, TorchFeatureExtractor

NETWORK, RATIO, RATE = "efficientnet_lite2", 0.01, 0.05
TOLERANCES = (1.0, 1.25, 1.5, 2.0, 3.0)
N_TIMED, N_ROUNDS = 48, 9
NAMES = {
    "mtd, random": "tile",
    "hazelnut_toy": "hazelnut",
    "brick": "brick",
    "grass": "grass",
    "gravel": "gravel",
    "metal part (transplants)": "metal part",
    "smooth surface (transplants)": "smooth surface",
}


def new_detector(memory: str | None) -> MultiProductDetector:
    """Return an unfitted detector."""
    extractor = TorchFeatureExtractor(NETWORK, image_size=(SIDE, SIDE), memory=memory)
    one = PatchCoreDetector(extractor, sampler=GreedyCoresetSampler(RATIO), random_state=0)
    return MultiProductDetector(one, contamination=RATE)


def fitted(sets: dict[str, Any], memory: str) -> MultiProductDetector:
    """Return a detector of these products."""
    images = [image for data in sets.values() for image in data.train]
    products = [name for name, data in sets.items() for _ in data.train]
    return new_detector(memory).fit(images, products=products)


def of_products(detector: MultiProductDetector, sets: dict[str, Any]) -> pd.DataFrame:
    """Return recognition and decisions per product, with the product recognised and given."""
    rows = []
    for name, data in sets.items():
        found = detector.identify(data.test)
        scores, given = detector.score_samples(data.test), detector.score_samples(data.test, products=name)
        flagged, flagged_given = scores < -1, given < -1
        bad = data.bad
        none = np.array([product is None for product in found])
        rows.append(
            {
                "product": name,
                "training": len(data.train),
                "good / defective": f"{int((~bad).sum())} / {int(bad.sum())}",
                "right, good": np.mean(found[~bad] == name),
                "right, defective": np.mean(found[bad] == name),
                "none, good": np.mean(none[~bad]),
                "none, defective": np.mean(none[bad]),
                "AUROC recognised": roc_auc_score(bad, -scores),
                "AUROC given": roc_auc_score(bad, -given),
                "false alarms recognised": np.mean(flagged[~bad]),
                "false alarms given": np.mean(flagged_given[~bad]),
                "recall recognised": np.mean(flagged[bad]),
                "recall given": np.mean(flagged_given[bad]),
            }
        )
    return pd.DataFrame(rows)


def of_tolerances(detector: MultiProductDetector, sets: dict[str, Any], memory: str) -> pd.DataFrame:
    """Return per tolerance how many good images show none of the products, and how many images of left-out products."""
    others = {name: fitted({k: v for k, v in sets.items() if k != name}, memory) for name in sets}
    rows = []
    for tolerance in TOLERANCES:
        detector.set_params(tolerance=tolerance)
        good = [np.array([n is None for n in detector.identify(data.test)])[~data.bad] for data in sets.values()]
        row: dict[str, Any] = {"tolerance": tolerance, "good of known products": np.concatenate(good).mean()}
        for name, other in others.items():
            other.set_params(tolerance=tolerance)
            row[name] = np.mean([n is None for n in other.identify(sets[name].test)])
        rows.append(row)
    return pd.DataFrame(rows)


def of_time(detector: MultiProductDetector, sets: dict[str, Any]) -> pd.DataFrame:
    """Return milliseconds per image, without the cache of the network's outputs: the shortest of alternating rounds."""
    name = "metal part"
    images = sets[name].test[:N_TIMED]
    for member in detector.estimators_:
        member.extractor_.set_params(memory=None)
    one = detector.for_product(name)
    ways = {
        "one detector of the product": lambda: one.score_samples(images),
        "several products, given": lambda: detector.score_samples(images, products=name),
        "several products, recognised": lambda: detector.score_samples(images),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(N_ROUNDS):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append((time.perf_counter() - start) * 1000 / len(images))
    return pd.DataFrame([{"detector": way, "ms per image": min(values)} for way, values in times.items()])


def table(frame: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    lines += [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run all measurements and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--times", action="store_true", help="only print the times")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    readers = data_sets(options.data)
    sets = {name: readers[key]() for key, name in NAMES.items()}
    memory = str(options.cache)
    detector = fitted(sets, memory)
    if options.times:
        print(table(of_time(detector, sets)))
        return
    products = of_products(detector, sets)
    tolerances = of_tolerances(detector, sets, memory)
    detector.set_params(tolerance=1.5)
    times = of_time(detector, sets)
    text = f"""# Several products in one detector

`python benchmarks/products.py PATH/TO/data --cache CACHE -o benchmarks/results/products.md`

{NETWORK} (pretrained), {SIDE} × {SIDE} pixels, ratio {RATIO:g}, promised false-positive rate {RATE:.0%}; {len(sets)}
products. torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} thread(s). Fractions
are from 0 to 1.

## Recognition and decisions (`tolerance=1.5`)

"Right" is the fraction of the test images for which `identify` returns the product, and "none" the fraction for which
it returns None. "Given" columns use the known product. The promised false-alarm rate does not hold for textures,
because their test images come from another part of the same image.

{table(products)}

## Images of unknown products

Fraction of images that show none of the products. First column: good test images of the known products, which should
show their product. The other columns: all test images of a product on which the detector was not fitted.

{table(tolerances)}

## Time

{table(times)}
"""
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
