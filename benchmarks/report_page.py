"""The report page of thousands of images: sizes on disk, seconds to write it, and how fluid it is in a browser.

    python benchmarks/report_page.py -o benchmarks/results/report_page.md

The images are pieces of scikit-image's textures, 512×512 pixels, with a dark spot in one of five; the detector is a
stub without a network, so that the seconds are those of the pictures and of the page. The browser is a headless
Chromium of the system, driven by playwright, without a GPU. It opens the page from the disk, and scrolls through it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy.ndimage import gaussian_filter
from skimage import data

import skpatchcore
from skpatchcore.detectors import ImageResult
from skpatchcore.images.reading import load_image
from skpatchcore.reports import make_cards, write_card_page

SIDE = 512
# Pixels and seconds of the scroll through the page, in steps of one frame.
SCROLL, SECONDS = 120, 8
SCROLLING = """
async ([step, seconds]) => {
  const longTasks = [], frames = [];
  const keep = list => longTasks.push(...list.getEntries().map(entry => entry.duration));
  new PerformanceObserver(keep).observe({entryTypes: ["longtask"]});
  const end = performance.now() + 1000 * seconds;
  let last = performance.now();
  while (performance.now() < end) {
    window.scrollBy(0, step);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
  }
  await new Promise(done => setTimeout(done, 200));
  frames.sort((a, b) => a - b);
  return {frames: frames.length / seconds, slow: frames[Math.floor(0.99 * frames.length)],
          longest: Math.max(0, ...longTasks), cards: document.querySelectorAll("#grid .card").length};
}
"""
FILTERING = """
async text => {
  const field = document.querySelector("[name=text]");
  const start = performance.now();
  field.value = text;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  await new Promise(requestAnimationFrame);
  await new Promise(done => setTimeout(done));
  return performance.now() - start;
}
"""
FIRST_PICTURE = "[...document.querySelectorAll('.card img')].some(i => i.complete && i.naturalWidth)"


class Spots:
    """Stands for a detector: the anomaly map is the darkness of the image, smoothed."""

    offset_, pixel_offset_ = -0.85, 0.8
    calibration_scores_ = -np.linspace(0.5, 0.85, 214)

    def iter_results(self, X: Any, on_error: str = "flag") -> Iterator[ImageResult]:
        """Yield a result of each image."""
        for i, path in enumerate(X):
            darkness = gaussian_filter(1 - load_image(path, i)[..., 0], 6)
            score = -float(darkness.max()) - 1e-4 * (i % 97)
            yield ImageResult(
                i, path, score, score - self.offset_, 1 if score >= self.offset_ else -1, math.nan, darkness, None
            )


def write_images(folder: Path, n: int) -> list[str]:
    """Write pieces of textures with and without a dark spot, and return their paths."""
    rng = np.random.default_rng(0)
    textures = [getattr(data, name)() for name in ("brick", "grass", "gravel")]
    paths = []
    for i in range(n):
        texture = np.roll(textures[i % 3], rng.integers(0, SIDE, 2), (0, 1))
        piece = (0.4 + 0.6 * gaussian_filter(texture, 1) / 255) * 255
        if i % 5 == 0:
            y, x = rng.integers(40, SIDE - 80, 2)
            piece[y : y + rng.integers(20, 60), x : x + rng.integers(20, 60)] = 0
        place = folder / f"shift {i // 500:02d}"
        place.mkdir(parents=True, exist_ok=True)
        paths.append(str(place / f"part-{i:05d}.jpg"))
        Image.fromarray(piece.astype(np.uint8)).save(paths[-1], quality=80)
    return paths


def sizes_of(folder: Path) -> dict[str, float]:
    """Return the mean size of each kind of picture in kB."""
    found: dict[str, list[int]] = {}
    for file in folder.glob("*.*.*"):
        found.setdefault(file.name.split(".")[1], []).append(file.stat().st_size)
    return {kind: float(np.mean(sizes)) / 1e3 for kind, sizes in sorted(found.items())}


def wait_until(page: Any, condition: str) -> None:
    """Wait until a condition holds in the page, for at most a minute."""
    end = time.perf_counter() + 60
    while not page.evaluate(condition):
        if time.perf_counter() > end:
            raise TimeoutError(condition)
        time.sleep(0.01)


def measured(page_file: Path, chromium: str) -> dict[str, float]:
    """Open a page in the browser, and return milliseconds and frames."""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto("about:blank")
        start = time.perf_counter()
        page.goto(page_file.as_uri(), wait_until="commit")
        wait_until(page, FIRST_PICTURE)
        first = 1e3 * (time.perf_counter() - start)
        page.wait_for_load_state("load")
        found = page.evaluate(SCROLLING, [SCROLL, SECONDS])
        found["first"] = first
        found["filter"] = page.evaluate(FILTERING, "part-0001")
        page.evaluate("window.scrollTo(0, 0)")
        start = time.perf_counter()
        page.locator("#grid .card button").first.click()
        wait_until(page, "document.querySelector('.sheet .image').naturalWidth > 0")
        found["open"] = 1e3 * (time.perf_counter() - start)
        found["heap"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        browser.close()
    return found


def main() -> None:
    """Write pages of several sizes, open them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "report_page.md")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 5000])
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    rows, detector = [], Spots()
    for n in options.images:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            paths = write_images(Path(folder) / "new", n)
            start = time.perf_counter()
            n_scored = sum(1 for _ in detector.iter_results(paths[:100]))
            seconds_scoring = (time.perf_counter() - start) / n_scored
            start = time.perf_counter()
            cards = make_cards(paths, detector, out)
            seconds_pictures = (time.perf_counter() - start) / n - seconds_scoring
            start = time.perf_counter()
            page = write_card_page(cards, out / "report.html", title="Benchmark", embed="10MB")
            seconds_page = time.perf_counter() - start
            pictures = out / "report_files"
            kinds = sizes_of(pictures)
            beside = sum(file.stat().st_size for file in pictures.iterdir()) / 1e6 if pictures.exists() else 0.0
            found = measured(page, chromium)
            rows.append(
                f"| {n:,} | {page.stat().st_size / 1e6:.1f} MB | {beside:.0f} MB | {1e3 * seconds_pictures:.0f} ms | "
                f"{seconds_page:.1f} s | {found['first']:.0f} ms | {found['frames']:.0f} | {found['slow']:.0f} ms | "
                f"{found['longest']:.0f} ms | {found['filter']:.0f} ms | {found['open']:.0f} ms | "
                f"{found['heap']:.0f} MB |"
            )
            print(rows[-1], found["cards"], kinds, flush=True)
    sizes = ", ".join(f"{kind} {size:.1f} kB" for kind, size in kinds.items())
    options.output.write_text(
        "# The report page of thousands of images\n\n"
        f"Images of {SIDE}×{SIDE} pixels, one of five anomalous; {os.cpu_count()} CPU cores, "
        f"{platform.system()}, headless Chromium without a GPU, page opened from the disk in a window of 1280×900 "
        f"pixels; skpatchcore {skpatchcore.__version__}. Mean sizes of the pictures: {sizes}.\n\n"
        "| images | page | pictures beside it | pictures, per image | page written in | first picture after | "
        "frames per second while scrolling | 99 % of frames within | longest task | filter by text | "
        "open an image | memory of the script |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Scrolling: {SCROLL} pixels per frame for {SECONDS} seconds, without a pause. Pages up to 10 MB hold their "
        "pictures inside. The first picture counts from the start of the navigation.\n\n"
        "Made by `python benchmarks/report_page.py`.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
