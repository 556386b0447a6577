"""The report of detection capability: sentences, charts, examples, real defects; on a phone, in the dark, on paper."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from skpatchcore.datasets import draw_defect
from skpatchcore.evaluation import DetectionCapability, fit_pod
from skpatchcore.reports import write_capability_report
from skpatchcore.reports.charts import pod_chart

SURFACE = np.random.default_rng(0).normal(0.5, 0.05, (80, 100, 3)).clip(0, 1).astype(np.float32)
SIZES = np.geomspace(2, 40, 24)
HITS = {
    "scratch": SIZES > 6,
    "blob": np.ones(24, bool),
    "stain": np.zeros(24, bool),
    "missing": SIZES + np.tile([-4, 4], 12) > 9,
}


def result_of(hits=HITS, seed=0, contrast=0.6):
    """Return a result with given hits at the same sizes for each kind."""
    trials = pd.concat(
        [
            pd.DataFrame({"image": np.arange(24) % 5, "kind": kind, "size": SIZES, "contrast": contrast, "hit": found})
            for kind, found in hits.items()
        ],
        ignore_index=True,
    )
    curves = {(kind, contrast): fit_pod(SIZES, found) for kind, found in hits.items()}
    names = {kind: "width" if kind == "scratch" else "diameter" for kind in hits}

    def draw(trial):
        return draw_defect(SURFACE, "blob", trials.loc[trial, "size"], random_state=trial)

    return DetectionCapability(trials, curves, names, 0.01, -2.5, 30, 1, seed, draw)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    real = result_of({"crack <b>": SIZES > 12}, None, math.nan)
    path = tmp_path_factory.mktemp("capability") / "report.html"
    return write_capability_report(result_of(), path, real=real, about={"Model": "part <i>.skops"})


def test_report_has_sentences_charts_examples_and_limits(page_path):
    text = page_path.read_text(encoding="utf-8")
    assert "Which defects are found, at a promised false-alarm rate of 1 %" in text
    for sentence in result_of().sentences():
        assert sentence in text
    assert "finds none of 24 stains of contrast 0.6" in text
    assert "finds all 24 blobs of contrast 0.6" in text
    assert "1 of 30 good images are flagged" in text
    assert text.count("<svg") == 5
    assert text.count("data:image/png;base64,") == 2 * 3 + 1 + 1  # all found and none found have one example each
    assert "What synthetic defects can and cannot say" in text
    assert "part &lt;i&gt;.skops" in text
    assert "crack &lt;b&gt;" in text
    assert "<b>" not in text
    assert "{{" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_pod_chart_has_a_tick_per_defect_and_lines_at_finite_sizes():
    curve = fit_pod(SIZES, SIZES > 6)
    chart = pod_chart(
        (SIZES, *curve.at(SIZES)), SIZES[SIZES > 6], SIZES[SIZES <= 6], {"a90": curve.a90, "a90/95": math.inf},
        title="T <b>", x_title="width",
    )  # fmt: skip
    assert chart.count('class="tick c0"') == (SIZES > 6).sum()
    assert chart.count('class="tick c1"') == (SIZES <= 6).sum()
    assert 'class="exact"' in chart
    assert 'class="threshold"' not in chart
    assert f"a90: {curve.a90:.1f} px" in chart
    assert "T &lt;b&gt;" in chart


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_report_fits_the_window_and_has_no_errors(browser, page_path, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(page_path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    tables = page.locator("table")
    assert tables.first.locator("tbody th").first.inner_text().startswith("real defects")  # they come first
    synthetic = tables.filter(has_text="scratches").first
    synthetic.get_by_role("button", name="a90/95").click()
    assert synthetic.locator("tbody th").first.inner_text().startswith(("scratches", "blobs"))
    assert problems == []
    page.close()


def test_report_is_accessible(browser, page_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto(page_path.as_uri())
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
    page.close()
