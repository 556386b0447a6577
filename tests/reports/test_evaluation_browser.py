"""The report of an evaluation in a headless browser: tables, viewer, phone, dark, print, accessibility."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from skpatchcore.evaluation import metric_intervals
from skpatchcore.evaluation.category import CategoryResult, table_of, with_mean
from skpatchcore.evaluation.runs import Evaluation, FinishedRun
from skpatchcore.evaluation.studies import Run
from skpatchcore.reports import write_evaluation_report
from skpatchcore.reports.layers import write_layers
from skpatchcore.reports.pictures import PictureFolder
from tests.reports.pages import photo

LABELS = np.array([1] * 6 + [-1] * 6)


class Parts:
    """Stands for a data set: six good and six defective test images."""

    train_images = tuple(range(8))
    test_labels = LABELS
    test_defects = np.array(["good"] * 6 + ["dent"] * 3 + ["scratch <b>"] * 3, object)
    split = None

    def __init__(self, paths):
        self.test_images = np.array(paths, object)


def run_of(name, place, folder, shift):
    """Return a finished run with one miss and one false alarm, whose pictures are in a folder."""
    rng = np.random.default_rng(len(name))
    scores = np.r_[-rng.uniform(2, 8, 5), -11.0, -rng.uniform(12, 20, 5), -5.0] - shift
    data = Parts([photo(folder / f"{name} {i}#.png", dark=(1, 1, 3, 3)) for i in range(12)])
    row = {
        "image_auroc": 0.9, "image_ap": 0.9, "image_f1_max": 0.9, "misclassified": 2, "pixel_auroc": 0.95,
        "pixel_ap": 0.5, "aupro": 0.8, "aupimo": 0.6, "good_flagged": 1 / 6, "defects_found": 5 / 6, "n_train": 8,
        "n_good": 6, "n_defective": 6, "n_masks": 6, "fit_seconds": 12.3, "test_seconds": 4.5,
    }  # fmt: skip
    curve = np.array([[0, 0.1, 0.3, 1.0], [0, 0.7, 0.9, 1.0]])
    result = CategoryResult(
        name, row, scores, LABELS, data.test_defects, data.test_images, -10.0 - shift, 0.5,
        -rng.uniform(2, 9, 8) - shift, curve, curve, np.where(LABELS == -1, 0.6, np.nan),
    )  # fmt: skip
    pictures, stored = PictureFolder(place / name / "all"), []
    for index, caption in ((11, "Missed defect (scratch <b>)"), (5, "False alarm: a good image"), (10, "Defective")):
        heat = np.zeros((48, 64))
        heat[10:30, 20:40] = float(index != 11)
        layers = write_layers(np.full((48, 64, 3), 0.5), heat, 0.5, pictures, truth=heat if index != 5 else None)
        values = {**vars(layers), "regions": [vars(region) for region in layers.regions]}
        stored.append({"kind": "miss", "index": index, "is_mistake": index != 10, "caption": caption,
                       "layers": values, "nearest": None})  # fmt: skip
    provenance = {"backbone": "net", "weights_digest": "0" * 64, "versions": {"torch": "2"}, "device": "cpu",
                  "date": "2026-01-01", "pictures": stored}  # fmt: skip
    settings = {"detector": "Detector", "parameters": {"contamination": "auto"}, "resolution": "own"}
    return FinishedRun(Run(name, "all", {}, None, data), result, settings, provenance)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    runs = [run_of(name, folder / "runs", folder, shift) for name, shift in (("bolt", 0), ("nut", 5))]
    table = with_mean(table_of([one.result for one in runs]))
    shots = pd.DataFrame(
        [{"category": c, "shots": n, "repeat": r, "image_auroc": 0.6 + n / 20 + r / 50, "pixel_auroc": 0.8,
          "aupro": 0.5, "good_flagged": 0.1, "defects_found": 0.5, "fit_seconds": 1.0, "test_seconds": 1.0}
         for c in ("bolt", "nut") for n in (1, 2, 5) for r in (0, 1)]
    )  # fmt: skip
    ablated = shots.rename(columns={"shots": "extractor__patch_size"}).drop(columns="repeat")
    intervals = metric_intervals([one.result for one in runs], n_resamples=50)
    evaluation = Evaluation(folder, runs, table, {"low-shot": shots, "patch_size": ablated}, intervals)
    return write_evaluation_report(evaluation, "hardware <i>")


@pytest.fixture
def opened(browser, page_path):
    """Return a function that opens the page. Errors on the console and requests to other than files fail the test."""
    contexts, problems = [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
        page.goto(page_path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def test_page_states_the_result_and_sorts_its_tables(opened):
    page = opened()
    assert page.locator("h1").text_content() == (
        "Finds 10 of 12 defective images and flags 2 of 12 good images in 2 categories"
    )
    table = page.locator("#results table").first
    names = table.locator("tbody th")
    assert names.all_text_contents() == ["bolt", "nut"]
    title = table.get_by_role("button", name="Category")
    title.click()
    assert names.all_text_contents() == ["nut", "bolt"]
    title.press("Enter")
    assert names.all_text_contents() == ["bolt", "nut"]
    assert table.locator("thead th").first.get_attribute("aria-sort") == "ascending"
    assert table.locator("tfoot th").text_content() == "mean"
    kinds = page.locator("#category-0 tbody tr")
    assert kinds.nth(2).locator("th, td").all_text_contents()[:3] == ["scratch <b>", "3", "2 of 3"]
    assert page.locator("figure.chart").count() == 2 * 3 + 3 + 3


def test_links_open_the_section_of_a_category(opened):
    page = opened()
    page.locator("#category-1 > details > summary").click()
    assert not page.locator("#category-1 .charts").is_visible()
    page.get_by_role("link", name="nut").click()
    page.wait_for_function("document.querySelector('#category-1 > details').open")


def test_mistakes_open_in_the_viewer(opened):
    page = opened()
    notes = page.locator("#grid .note").all_text_contents()
    assert notes[:2] == ["Missed defect (scratch <b>)"] * 2
    assert notes[2:4] == ["False alarm: a good image"] * 2
    assert page.locator("#histogram").is_hidden()
    card = page.locator("#grid .card button").first
    card.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.sheet .image').naturalWidth === 64")
    assert page.get_by_label("Known defect").is_visible()
    assert "Missed defect" in page.locator(".numbers").text_content()
    assert page.locator(".file").get_attribute("href").endswith("bolt%2011%23.png")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").text_content().startswith("2 of 6")
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_hidden()


def test_phone_has_no_overflow_and_large_controls(opened):
    page = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    box = page.locator("h1").bounding_box()
    assert box["y"] + box["height"] <= 844
    small = """() => [...document.querySelectorAll("button, select, summary, .chip")].filter(e => {
        const box = e.getBoundingClientRect();
        return e.getClientRects().length && Math.min(box.height, box.width) < 43.9;
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(small) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    found = axe.run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) == (scheme == "dark")


def test_print_contains_all_sections_and_mistakes(opened):
    pypdf = pytest.importorskip("pypdf")
    page = opened()
    page.locator("#category-1 > details > summary").click()
    printed = pypdf.PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))
    text = " ".join(sheet.extract_text() for sheet in printed.pages)
    for expected in (
        "Results per category",
        "Test images of nut by kind",
        "The worst images",
        "Fewer training images",
    ):
        assert expected in text, expected
    assert [text.count(note) for note in ("Missed defect", "False alarm: a good image")] == [2, 2]
    assert len(printed.pages) <= 6


def test_page_without_scripts_shows_tables_and_charts(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#category-0 svg").first.is_visible()
    assert page.locator("#results tbody tr").first.is_visible()
    assert page.locator("main").is_hidden()
