"""The page of a running inspection: its cards, charts, notices, and its reload in a browser."""

from __future__ import annotations

import math
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore.reports import read_labels
from skpatchcore.reports.inspection import InspectedPart
from skpatchcore.reports.layers import write_layers
from skpatchcore.reports.live_page import N_CARDS, LivePage
from skpatchcore.reports.pictures import PictureFolder
from skpatchcore.reports.predictions import Prediction
from skpatchcore.reports.time_charts import N_PARTS, evidence_chart, p_value_chart, rate_chart, recent_rates
from tests.reports.pages import Darkness, cards_of, data_of, photo

START = 1_790_000_000.0


def prediction(path, score=0.3, layers=None):
    if math.isnan(score):
        return Prediction(path, score, score, -1, score, None, "it cannot be read")
    label = 1 if score >= Darkness.offset_ else -1
    return Prediction(path, score, score - Darkness.offset_, label, 0.1, None, layers=layers)


def written(page, predictions, **options):
    """Write a page of predictions, one per minute."""
    n = len(predictions)
    times = START + 60 * np.arange(n)
    given_ = {
        "cards": [(t, page.stored(page.card_of(p))) for t, p in zip(times, predictions, strict=True)],
        "times": times,
        "labels": np.array([p.label for p in predictions]),
        "p_values": np.array([p.p_value for p in predictions]),
        "evidence": np.linspace(0, 1, n),
    }
    return page.write(**{**given_, **options})


def head_of(file):
    return re.search("<h1>(.*?)</h1>", file.read_text(encoding="utf-8"))[1]


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([], "No part has been judged yet"),
        ([0.3], "The last part is anomalous"),
        ([0.9], "The last part is normal"),
        ([math.nan], "The last part could not be read"),
        ([0.9, 0.9], "None of the last 2 parts is anomalous"),
        ([0.9, 0.3], "1 of the last 2 parts is anomalous"),
        ([0.3, math.nan, 0.3], "2 of the last 3 parts are anomalous, 1 could not be read"),
    ],
)
def test_headline_counts_the_parts_on_the_page(tmp_path, scores, text):
    page = LivePage(tmp_path, Darkness())
    assert head_of(written(page, [prediction(f"/new/{i}.png", s) for i, s in enumerate(scores)])) == text


def test_page_shows_the_last_parts_newest_first_with_their_times(tmp_path):
    page = LivePage(tmp_path, Darkness())
    cards = cards_of(written(page, [prediction(f"/new/{i}.png") for i in range(N_CARDS + 5)]))
    assert [card["name"] for card in cards] == [f"{i}.png" for i in range(N_CARDS + 4, 4, -1)]
    assert all(re.fullmatch(r"judged on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+", card["note"]) for card in cards)


def test_stored_cards_keep_pictures_regions_and_the_inspected_part(tmp_path):
    heat = np.pad(np.full((30, 40), 0.9), 5, constant_values=np.nan)
    layers = write_layers(np.full((40, 50, 3), 0.5), heat, 0.6, PictureFolder(tmp_path))
    page = LivePage(tmp_path, Darkness())
    card = page.card_of(prediction(photo(tmp_path / "part.png"), layers=layers))
    restored = page._restored(page.stored(card), START)
    assert restored.layers == layers
    assert restored.layers.inspected == InspectedPart(0.6, (5, 5, 5, 5), True)
    assert (restored.score, restored.verdict, restored.group) == (card.score, card.verdict, card.group)
    (shown,) = cards_of(written(page, [prediction(card.path, layers=layers)]))
    assert all(os.path.exists(tmp_path / shown[kind]) for kind in ("thumb", "image", "map", "outline", "unseen"))


def test_pictures_of_parts_that_are_not_shown_are_removed_and_the_list_stays_short(tmp_path):
    page, pictures, predictions = LivePage(tmp_path, Darkness()), PictureFolder(tmp_path), []
    for i in range(N_CARDS + 10):
        layers = write_layers(np.zeros((8, 8, 3)), np.zeros((8, 8)), 0.6, pictures)
        predictions.append(prediction(f"/new/{i}.png", layers=layers))
    written(page, predictions)
    kept = {file for p in predictions[10:] for file in p.layers.files()}
    folder = tmp_path / "report_files"
    assert {f"report_files/{name}" for name in os.listdir(folder)} == {*kept, "report_files/files.txt"}
    assert len((folder / "files.txt").read_text().splitlines()) == 1 + len(kept)


def test_part_of_an_earlier_model_keeps_its_verdict_and_says_so(tmp_path):
    class Stricter(Darkness):
        offset_ = 0.95

    text = LivePage(tmp_path, Darkness()).stored(LivePage(tmp_path, Darkness()).card_of(prediction("/a.png", 0.9)))
    file = written(LivePage(tmp_path, Stricter()), [], cards=[(START, text)])
    (card,) = cards_of(file)
    assert card["verdict"] == "normal"
    assert card["note"].endswith("judged by an earlier model, whose threshold was -0.4")
    assert card["judged"] == {"threshold": -0.4, "offset": "0.4"}
    assert data_of(file)["groups"][0]["offset"] == "0.95"


def test_alarm_of_drift_and_end_are_on_the_page(tmp_path):
    text = written(LivePage(tmp_path, Darkness()), [], drift="The images are <darker>.").read_text(encoding="utf-8")
    assert '<p class="notice" id="drift" role="alert">The images are &lt;darker&gt;.</p>' in text
    assert 'id="stopped"' not in text
    text = written(LivePage(tmp_path, Darkness()), [], stopped="The program was stopped.").read_text(encoding="utf-8")
    assert '<p class="notice" id="stopped" role="alert">The program was stopped.</p>' in text


@given(st.lists(st.booleans(), max_size=400))
def test_rates_are_fractions_of_the_last_parts(flagged):
    at, rates = recent_rates(np.array(flagged, bool))
    expected = [np.mean(flagged[max(0, i + 1 - N_PARTS) : i + 1]) for i in at]
    np.testing.assert_allclose(rates, expected)
    if flagged:
        assert (at[0], at[-1]) == (min(10, len(flagged)) - 1, len(flagged) - 1)


def test_p_values_draw_all_flagged_parts_and_few_others():
    n = 5000
    flagged = np.arange(n) % 50 == 0
    svg = p_value_chart(START + np.arange(n), np.where(flagged, 0.001, 0.5), flagged)
    assert svg.count('<circle class="dot c1"') == flagged.sum()
    assert svg.count('<circle class="dot c0"') == 500
    assert "4,400 dots are left out" in svg


def test_charts_of_one_part_and_of_unknown_values_are_drawn():
    for chart in (
        rate_chart(np.array([START]), np.array([True])),
        rate_chart(np.array([START]), np.array([False]), 0.05),
        p_value_chart(np.array([START]), np.array([np.nan]), np.array([True])),
        evidence_chart(START + np.arange(3), np.array([np.nan, 1.0, np.nan]), 0.01),
        evidence_chart(START + np.arange(3), np.full(3, -700.0), 0.01),
        # exp(4000) is too large for a float
        evidence_chart(START + np.arange(3), np.array([-4000.0, 0.0, 4000.0]), 0.01),
    ):
        assert chart.startswith("<figure")
        assert not re.search("nan|inf", chart)


@pytest.mark.parametrize(
    ("seconds", "form"),
    [(0, r"\d\d:\d\d:\d\d"), (45, r"\d\d:\d\d:\d\d"), (600, r"\d\d:\d\d"), (40 * 24 * 3600, r"\d\d [A-Z][a-z][a-z]")],
)
def test_labels_of_times_fit_the_range_and_are_few(seconds, form):
    svg = rate_chart(np.array([START, START + seconds]), np.array([True, False]))
    labels = [text for text in re.findall(r'text-anchor="middle">([^<]*)</text>', svg) if re.fullmatch(form, text)]
    assert 1 <= len(labels) <= 6


def test_large_evidence_has_short_labels():
    svg = evidence_chart(START + np.arange(3), np.array([0.0, 60.0, 120.0]), 0.01)
    assert re.search(r'text-anchor="end">10[⁰¹²³⁴⁵⁶⁷⁸⁹]+</text>', svg)
    assert "e+" not in svg


def test_evidence_is_interrupted_where_it_is_unknown():
    evidence = np.array([0.0, 1.0, np.nan, 0.0, 0.5])
    assert evidence_chart(START + np.arange(5), evidence, 0.01).count("<polyline") == 2


@pytest.fixture
def tab(browser):
    """Return a page in the browser; errors on its console fail the test."""
    context, problems = browser.new_context(viewport={"width": 390, "height": 800}), []
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert not problems


def test_browser_loads_the_page_again_and_keeps_the_view(tmp_path, tab):
    page = LivePage(tmp_path, Darkness(), refresh=0.2)
    tab.goto(written(page, [prediction("/new/1.png"), prediction("/new/2.png", 0.9)]).as_uri())
    tab.locator("#controls").evaluate("controls => { controls.open = true; }")
    tab.locator("[name=verdict][value=normal]").evaluate("box => box.click()")
    tab.evaluate("document.activeElement.blur()")
    assert tab.locator("#shown").inner_text() == "1 of 2 parts shown"
    written(page, [prediction(f"/new/{i}.png", 0.3 if i else 0.9) for i in range(4)])
    tab.locator("h1", has_text="3 of the last 4").wait_for()
    assert tab.locator("#shown").inner_text() == "3 of 4 parts shown"
    assert tab.locator("#controls").evaluate("controls => controls.open")


def test_browser_does_not_load_the_page_while_a_part_is_open(tmp_path, tab):
    page = LivePage(tmp_path, Darkness(), refresh=0.2)
    tab.goto(written(page, [prediction("/new/1.png")]).as_uri())
    tab.locator("#grid .card button").evaluate("button => button.click()")
    written(page, [prediction("/new/1.png"), prediction("/new/2.png")])
    tab.locator("#refresh", has_text="while you use it").wait_for()
    tab.wait_for_timeout(2500)
    assert tab.locator("h1").inner_text() == "The last part is anomalous"
    tab.evaluate("document.querySelector('dialog').close()")
    tab.locator("h1", has_text="2 of the last 2").wait_for()


def test_answers_of_a_review_stay_when_the_page_is_loaded_again(tmp_path, tab):
    page = LivePage(tmp_path, Darkness(), refresh=0.2)
    tab.goto(written(page, [prediction("/new/1.png")]).as_uri())
    tab.locator("#grid .card button").evaluate("button => button.click()")
    tab.keyboard.press("f")
    tab.evaluate("document.querySelector('dialog').close()")
    written(page, [prediction("/new/1.png"), prediction("/new/2.png")])
    tab.locator("h1", has_text="2 of the last 2").wait_for()
    assert tab.locator("#review .done").inner_text() == "1 of 2 parts reviewed"


def test_answers_about_parts_of_an_earlier_model_are_saved_with_its_threshold(tmp_path, tab):
    class Stricter(Darkness):
        offset_ = 0.95

    text = LivePage(tmp_path, Darkness()).stored(LivePage(tmp_path, Darkness()).card_of(prediction("/a.png", 0.9)))
    later = LivePage(tmp_path, Stricter())
    cards = [(START, text), (START + 1, later.stored(later.card_of(prediction("/b.png", 0.3))))]
    tab.goto(written(later, [], cards=cards, stopped="The program was stopped.").as_uri())
    with tab.expect_download() as found:
        tab.get_by_role("button", name="Save as CSV", exact=True).click()
    found.value.save_as(tmp_path / "review.csv")
    thresholds = read_labels(tmp_path / "review.csv").set_index("path")["threshold"]
    assert thresholds.to_dict() == {"/a.png": 0.4, "/b.png": 0.95}


def test_browser_does_not_load_the_page_if_answers_would_be_lost(tmp_path, tab):
    tab.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })")
    page = LivePage(tmp_path, Darkness(), refresh=0.2)
    tab.goto(written(page, [prediction("/new/1.png")]).as_uri())
    tab.locator("#grid .card button").evaluate("button => button.click()")
    tab.keyboard.press("f")
    tab.evaluate("document.querySelector('dialog').close()")
    written(page, [prediction("/new/1.png"), prediction("/new/2.png")])
    tab.wait_for_timeout(7000)  # longer than a reader who has only just used the page holds it
    assert tab.locator("#refresh").inner_text() == "This page is not loaded again until you save your answers."
    assert tab.locator("#review .done").inner_text() == "1 of 1 part reviewed"


def test_browser_says_that_no_new_page_comes(tmp_path, tab):
    tab.goto(written(LivePage(tmp_path, Darkness(), refresh=0.1), [prediction("/new/1.png")]).as_uri())
    tab.locator("#late").wait_for(state="visible")
    assert "The program may have stopped" in tab.locator("#late").inner_text()


def test_page_of_an_ended_inspection_shows_the_next_one_without_a_warning(tmp_path, tab):
    page = LivePage(tmp_path, Darkness(), refresh=0.1)
    tab.goto(written(page, [prediction("/new/1.png")], stopped="The program was stopped.").as_uri())
    tab.wait_for_timeout(2500)
    assert tab.locator("#stopped").is_visible()
    assert not tab.locator("#late").is_visible()
    written(page, [prediction("/new/1.png"), prediction("/new/2.png")])
    tab.locator("h1", has_text="2 of the last 2").wait_for()
    assert not tab.locator("#stopped").count()
