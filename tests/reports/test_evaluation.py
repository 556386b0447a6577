"""The report of an evaluation: names of any kind, pictures that are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skpatchcore.datasets import load_image_folder
from skpatchcore.evaluation import run_evaluation
from skpatchcore.evaluation.category import evaluate_category
from skpatchcore.reports import write_evaluation_report, write_worst
from tests.factories import detector


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        for part in ("train/good", "test/good", "test/dark"):
            pixels = (rng.normal(0.5, 0.03, (32, 32, 3)).clip(0, 1) * 255).astype(np.uint8)
            pixels[8:24, 8:24] *= part != "test/dark"
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / part / f"{i}.png")
    return load_image_folder(tmp_path / "data")


HARD = ["ros\udce9", "$x^$", "<b>&", "_x", "a/b", "..", "CON", "é" * 200]


@pytest.mark.filterwarnings("ignore:contamination")
def test_categories_may_have_any_name(data, tmp_path):
    categories = dict.fromkeys(HARD, data)
    made = detector(calibration=None)
    for _ in range(2):
        evaluation = run_evaluation(
            made, categories, tmp_path / "out", shots=[2, 3], n_repeats=1, draw=lambda *given: write_worst(*given, n=1)
        )
    page = write_evaluation_report(evaluation, "ros\udce9").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("data:image/jpeg") == 2 * len(HARD)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["category"].tolist() == ["ros\\xe9", *HARD[1:], "mean"]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == len(HARD)
    assert not (tmp_path / "out" / "all").exists()


def test_a_picture_that_can_not_be_drawn_is_left_out_with_a_warning(data, tmp_path):
    result, fitted = evaluate_category(detector(calibration=None), "parts", data)
    worst = int(np.argmin(np.where(data.test_labels == 1, result.scores, np.inf)))
    paths = data.test_paths.copy()
    paths[worst] += ".gone"
    with pytest.warns(UserWarning, match=f"category 'parts': no picture of test image {worst}: .*no such file"):
        drawn = write_worst(result, fitted, replace(data, test_paths=paths), tmp_path, n=1)
    assert [one["kind"] for one in drawn] == ["miss"]


@pytest.mark.filterwarnings("ignore:contamination")
def test_a_stored_picture_that_is_gone_leaves_the_report(data, tmp_path):
    evaluation = run_evaluation(
        detector(calibration=None), data, tmp_path, draw=lambda *given: write_worst(*given, n=1)
    )
    (tmp_path / "runs" / "all" / "all" / "miss-1.png").unlink()
    page = write_evaluation_report(evaluation, "parts").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1
    assert "it can&#x27;t be shown" in page
