"""The sentences about the images and the results of an evaluation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from skpatchcore.evaluation.category import CategoryResult
from skpatchcore.evaluation.summary import advice, describe_images, describe_result


def data(kinds, split=None, n_train=3):
    labels = np.array([1 if kind == "good" else -1 for kind in kinds])
    return SimpleNamespace(train_images=[0] * n_train, test_labels=labels, test_defects=kinds, split=split)


def test_describe_images_counts_kinds_and_names_the_division():
    plain = data(["good", "dent", "dent", "a\nb"])
    assert describe_images(plain) == (
        "Fitted on 3 good images. Tested on 1 other good image and 3 defective images (2 dent, 1 a\\x0ab)."
    )
    drawn = data(["good", "dent"], {"test_size": 0.2, "random_state": 7}, n_train=1)
    assert describe_images(drawn) == (
        "Fitted on 1 good image, drawn at random from 2 (seed 7). Tested on 1 other good image and 1 defective image "
        "(1 dent)."
    )


def test_describe_images_names_at_most_eight_kinds():
    text = describe_images(data(["good", *(f"kind {i}" for i in range(20))]))
    assert text.count("kind") == 8
    assert text.endswith("..., ...).") or text.endswith(", ...).")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (-2.0, "finds 1 of 2 defective images and flags 0 of 1 good image; AUROC 0.750"),
        (math.nan, "no threshold, because there was no calibration; AUROC 0.750"),
    ],
)
def test_describe_result_counts_flagged_images(offset, expected):
    scores, labels = np.array([-1.0, -2.0, -3.0]), np.array([1, -1, -1])
    empty = np.zeros(0)
    result = CategoryResult("a", {"image_auroc": 0.75}, scores, labels, labels, labels, offset, 1.0, empty, empty)
    assert describe_result(result) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.99, 0.95, 0.0), ""),
        ((0.99, math.nan, math.nan), ""),
        ((0.7, 0.2, 0.0), "no threshold can"),
        ((0.95, 0.5, 0.0), "contamination=0.1"),
        ((0.95, 1.0, 0.5), "Many good images are flagged"),
    ],
)
def test_advice_depends_on_separation_and_threshold(numbers, expected):
    text = advice(*numbers)
    assert (expected in text) if expected else text == ""
