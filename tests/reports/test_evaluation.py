"""The report of an evaluation: its sentences and tables, names of any kind, missing and stale pictures."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skpatchcore.datasets import load_image_folder, make_textures
from skpatchcore.evaluation import run_evaluation
from skpatchcore.evaluation.category import evaluate_category
from skpatchcore.evaluation.storage import Results
from skpatchcore.reports import write_evaluation_report, write_worst
from tests.factories import detector
from tests.reports.pages import cards_of, data_of

pytestmark = pytest.mark.filterwarnings("ignore:contamination", "ignore:the mask")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    top = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for i in range(4):
        for part in ("train/good", "test/good", "test/dark", "test/pale"):
            pixels = (rng.normal(0.5, 0.03, (32, 32, 3)).clip(0, 1) * 255).astype(np.uint8)
            if part == "test/dark":
                pixels[8:24, 8:24] = 0
            path = top / part / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            if part in ("test/dark", "test/pale"):
                path = top / "ground_truth" / part[5:] / f"{i}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    return load_image_folder(top)


def evaluated(data, folder, n=2, made=None, **options):
    return run_evaluation(
        made or detector(), data, folder, draw=lambda *given: write_worst(*given, n=n), **options
    )  # fmt: skip


def plain(page):
    """Return the text of a page without tags and scripts."""
    text = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_report_states_the_result_first(data, tmp_path):
    evaluation = evaluated(data, tmp_path)
    page = write_evaluation_report(evaluation, "parts", method="a method")
    result = evaluation.runs[0].result
    flagged, bad = result.scores < result.offset, result.labels == -1
    expected = f"finds {flagged[bad].sum()} of 8 defective images and flags {flagged[~bad].sum()} of 4 good images"
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{expected.capitalize()}, at a promised false-positive rate of 20 %</h1>" in text
    shown = plain(page)
    assert f"{expected}; AUROC {result.row['image_auroc']:.3f}" in shown
    assert "Fitted on 4 good images. Tested on 4 other good images and 8 defective images (4 dark, 4 pale)." in shown
    assert "The threshold was set from 4 calibration images. It is the score of the most anomalous one." in shown
    assert "a method" in shown
    assert "How these results were made" in shown
    assert f"SHA-256 of the weights {evaluation.runs[0].provenance['weights_digest']}" in shown


def test_report_has_a_row_per_kind_of_defect(data, tmp_path):
    evaluation = evaluated(data, tmp_path)
    result = evaluation.runs[0].result
    text = write_evaluation_report(evaluation, "parts").read_text(encoding="utf-8")
    (table,) = re.findall(r'aria-label="Test images of all by kind of defect">.*?</table>', text, re.DOTALL)
    rows = {}
    for row in re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL):
        cells = re.findall(r'data-value="([^"]*)"', row)
        rows[cells[0]] = cells[1:]
    assert list(rows) == ["good", "dark", "pale"]
    for kind in rows:
        own = -result.scores[result.defects == kind] / -result.offset
        n, share, median, lowest, highest, overlap = (float(cell or "nan") for cell in rows[kind])
        assert n == 4
        assert share == (own > 1).mean()
        np.testing.assert_allclose([median, lowest, highest], [np.median(own), own.min(), own.max()])
        np.testing.assert_allclose(overlap, result.aupimo[result.defects == kind].mean())
    assert np.nanmean(result.aupimo) == pytest.approx(result.row["aupimo"])


def test_report_shows_misses_first_and_links_the_originals(data, tmp_path):
    page = write_evaluation_report(evaluated(data, tmp_path), "parts")
    cards = cards_of(page)
    assert data_of(page)["order"] == "mistakes first"
    notes = [card["note"] for card in cards]
    assert sorted(notes, key=lambda note: not note.startswith("Missed")) == notes
    assert len(cards) == 4
    for card in cards:
        assert (page.parent / card["link"]).is_file()
        assert card["image"].startswith("data:image/jpeg")
        assert card["score"] > 0  # higher = more anomalous
        assert "nearest" in card
    assert sum("truth" in card for card in cards) == 2


HARD = ["ros\udce9", "$x^$", "<b>&", "_x", "a/b", "..", "CON", "é" * 200]


def test_report_escapes_categories_with_any_name(data, tmp_path):
    categories = dict.fromkeys(HARD, data)
    made = detector(calibration=None)
    for _ in range(2):
        evaluation = evaluated(categories, tmp_path / "out", 1, made, shots=[2, 3], n_repeats=1)
    page = write_evaluation_report(evaluation, "ros\udce9")
    assert "<b>" not in page.read_text(encoding="utf-8")
    assert len(cards_of(page)) == 2 * len(HARD)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["category"].tolist() == ["ros\\xe9", *HARD[1:], "mean"]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == len(HARD)
    assert not (tmp_path / "out" / "all").exists()
    assert "no threshold, because there was no calibration" in plain(page)
    images = pd.read_csv(tmp_path / "out" / "images.csv")
    assert images["category"].unique().tolist() == ["ros\\xe9", *HARD[1:]]


def test_write_worst_warns_of_a_picture_that_cannot_be_drawn(data, tmp_path):
    result, fitted = evaluate_category(detector(calibration=None), "parts", data)
    worst = int(np.argmin(np.where(data.test_labels == 1, result.scores, np.inf)))
    paths = data.test_paths.copy()
    paths[worst] += ".gone"
    with pytest.warns(UserWarning, match=f"category 'parts': no picture of test image {worst}: .*no such file"):
        drawn = write_worst(result, fitted, replace(data, test_paths=paths), tmp_path, n=1)
    assert [one["kind"] for one in drawn] == ["miss"]
    json.dumps(drawn)  # is stored as JSON


def test_report_names_a_stored_picture_that_is_missing(data, tmp_path):
    evaluation = evaluated(data, tmp_path, 1)
    (tmp_path / "runs" / "all" / "all" / "report_files" / "00000.image.jpg").unlink()
    first, second = cards_of(write_evaluation_report(evaluation, "parts"))
    assert "image" not in first
    assert first["problem"].startswith("a picture cannot be shown: No such file")
    assert "image" in second


def test_report_accepts_results_with_pictures_of_another_version(data, tmp_path):
    run_evaluation(detector(), data, tmp_path, draw=lambda *given: [{"file": "a.png", "kind": "miss", "caption": "x"}])
    page = write_evaluation_report(run_evaluation(detector(), data, tmp_path), "parts")
    assert cards_of(page) == []


def test_second_run_leaves_no_stale_pictures(data, tmp_path):
    evaluated(data, tmp_path / "out", 2)
    place = Results(tmp_path / "out" / "runs").folder / "all" / "all"
    (place / "report_files" / "mine.png").write_bytes(b"mine")
    before = {path.name for path in (place / "report_files").iterdir()}
    with pytest.warns(UserWarning, match="the data changed"):
        again = evaluated(replace(data, train_paths=data.train_paths[:3]), tmp_path / "out", 1)
    after = {path.name for path in (place / "report_files").iterdir()}
    assert len(after) < len(before)
    assert "mine.png" in after
    page = write_evaluation_report(again, "parts")
    assert not (page.parent / "report_files").exists()  # the pictures are inside the page
    assert len(cards_of(page)) == 2


def test_report_of_arrays_has_cards_without_links(tmp_path):
    task = make_textures("brick", n_views=1)
    some = replace(
        task,
        **{name: getattr(task, name)[12:20] for name in ("test_images", "test_labels", "test_defects", "test_masks")},
    )
    page = write_evaluation_report(evaluated(some, tmp_path, 1), "brick")
    cards = cards_of(page)
    assert [card["path"].split()[:2] for card in cards] == [["test", "image"]] * 2
    assert not any("link" in card for card in cards)
    assert not (tmp_path / "images.csv").exists()
