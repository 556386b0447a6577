"""Read report pages back, and make small ones: a stub detector, photos, the data that a page holds."""

from __future__ import annotations

import json
import math
import os
import re

import numpy as np
from PIL import Image

from skpatchcore.detectors import ImageResult
from skpatchcore.images.reading import ImageError, load_image


class Darkness:
    """Stands for a detector: the score is the mean of the pixels, the anomaly map their darkness."""

    offset_, pixel_offset_ = 0.4, 0.6
    calibration_scores_ = np.full(9, 0.5)
    extractor = "precomputed"

    def iter_results(self, X, on_error="flag"):
        for i, path in enumerate(X):
            try:
                pixels = load_image(path, i)
            except ImageError as error:
                yield ImageResult(i, path, math.nan, math.nan, -1, math.nan, None, error)
                continue
            score = float(pixels.mean())
            label = 1 if score >= self.offset_ else -1
            yield ImageResult(i, path, score, score - self.offset_, label, 0.5, 1 - pixels[..., 0], None)


def photo(path, value=128, size=(6, 8), dark=None):
    """Write a grey PNG file, with a black rectangle (top, left, bottom, right) if asked for; return its path."""
    pixels = np.full((*size, 3), value, np.uint8)
    if dark is not None:
        top, left, bottom, right = dark
        pixels[top:bottom, left:right] = 0
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    return os.fspath(path)


def data_of(page):
    """Return the data that a page holds for its script."""
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def cards_of(page):
    """Return the cards that a page holds, the most anomalous first."""
    return data_of(page)["cards"]
