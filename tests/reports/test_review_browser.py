"""The review on a report page in a headless browser: answers, keys, filters, files, storage, print, accessibility."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from skpatchcore.reports import Card, CardGroup, read_labels, write_card_page
from skpatchcore.reports.pictures import PictureFolder
from tests.reports.test_browser import GROUP, card_of, wait_until

N_CARDS = 9
ODD = "odd\n\"'\udce9, =1.png"
# Takes the storage away before the page's script runs, as in a private window.
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } });"


@pytest.fixture
def cards(tmp_path):
    folder = tmp_path / "page"
    pictures = PictureFolder(folder)
    made = [card_of(i, folder / "new", pictures) for i in range(N_CARDS - 1)]
    return folder, [*made, Card(f"/new/{ODD}", "unreadable", math.nan, GROUP, problem="no image")]


@pytest.fixture
def path(cards):
    folder, made = cards
    return write_card_page(made, folder / "report.html", title="Parts", embed=None, review=True)


@pytest.fixture
def opened(browser):
    """Return a function that opens a page, each in its own profile unless a context is given."""
    contexts, problems = [], []

    def opened(path, context=None, script="", **options):
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def names(page):
    return page.locator("#grid .card .name").all_text_contents()


def progress(page):
    return page.locator("#review .done").text_content()


def pressed(page):
    return page.locator(".choice [aria-pressed=true]").evaluate_all("all => all.map(e => e.dataset.answer)")


def title(page):
    return page.locator("#viewer-title").text_content()


def open_part(page, text):
    page.locator("#grid .card", has_text=text).locator("button").click()


def saved(page, name, tmp_path):
    with page.expect_download() as found:
        page.get_by_role("button", name=name, exact=True).click()
    target = tmp_path / found.value.suggested_filename
    found.value.save_as(target)
    return target


def test_answer_is_set_undone_and_shown_on_the_card_and_in_the_table(path, opened):
    page = opened(path)
    assert progress(page) == "0 of 9 parts reviewed"
    assert page.locator("#review progress").evaluate("bar => [bar.value, bar.max]") == [0, N_CARDS]
    open_part(page, "part 7#")
    page.get_by_role("button", name="Defect", exact=True).click()
    assert pressed(page) == ["defect"]
    page.get_by_role("button", name="Fine", exact=True).click()
    assert pressed(page) == ["fine"]
    page.get_by_label("Note", exact=True).fill("dust <b>")
    page.keyboard.press("Escape")
    card = page.locator("#grid .card", has_text="part 7#")
    assert "Reviewed: fine" in card.text_content()
    assert "Note: dust <b>" in card.text_content()
    assert progress(page) == "1 of 9 parts reviewed"
    page.get_by_role("button", name="Table").click()
    row = page.locator("#table tbody tr", has_text="part 7#")
    assert row.locator("td").last.text_content() == "Reviewed: fineNote: dust <b>"
    row.locator("button").click()
    page.get_by_role("button", name="Fine", exact=True).click()
    assert pressed(page) == []
    page.get_by_label("Note", exact=True).fill("")
    assert progress(page) == "0 of 9 parts reviewed"
    assert page.evaluate("localStorage.length") == 0


def test_keys_answer_and_go_to_the_next_part_without_an_answer(path, opened):
    page = opened(path)
    page.get_by_role("button", name="Start review").click()
    assert title(page).startswith("1 of 9")
    page.keyboard.press("d")
    assert title(page).startswith("2 of 9")
    assert page.locator(".judge .done").text_content() == "1 of 9 parts reviewed"
    page.keyboard.press("F")
    page.keyboard.press("u")
    assert title(page).startswith("4 of 9")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert title(page).startswith("1 of 9")
    assert pressed(page) == ["defect"]
    page.keyboard.press("f")  # another answer; the next part without an answer is the fourth
    assert title(page).startswith("4 of 9")
    page.keyboard.press("Control+f")
    assert title(page).startswith("4 of 9")
    page.get_by_label("Note", exact=True).click()
    page.keyboard.type("dull fun")
    page.keyboard.press("ArrowLeft")
    assert page.get_by_label("Note", exact=True).input_value() == "dull fun"
    assert title(page).startswith("4 of 9")
    assert pressed(page) == []
    page.locator("#viewer-title").focus()
    for _ in range(6):
        page.keyboard.press("d")
    assert progress(page) == "9 of 9 parts reviewed"
    assert page.locator(".told").text_content() == "All 9 parts are reviewed."
    page.keyboard.press("Escape")
    assert page.get_by_role("button", name="Continue review").is_visible()


def test_held_key_answers_one_part(path, opened):
    page = opened(path)
    open_part(page, "part 7#")
    page.keyboard.down("d")
    page.keyboard.down("d")  # a repeated event
    page.keyboard.down("d")
    page.keyboard.up("d")
    assert progress(page) == "1 of 9 parts reviewed"


def test_filter_by_answer_is_applied_when_the_part_is_closed(path, opened):
    page = opened(path)
    page.locator("#filters [name=review]").select_option("open")
    page.get_by_role("button", name="Start review").click()
    page.keyboard.press("f")  # the image that could not be read: the program flags it
    page.keyboard.press("d")
    page.keyboard.press("u")
    assert title(page).startswith("4 of 9")  # the list stays while a part is open
    page.keyboard.press("Escape")
    assert len(names(page)) == 6
    field = page.locator("#filters [name=review]")
    for value, n in (("defect", 1), ("fine", 1), ("unsure", 1), ("disagrees", 1), ("", 9)):
        field.select_option(value)
        assert len(names(page)) == n, value
    open_part(page, "part 0#")  # a normal part
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    field.select_option("disagrees")
    assert len(names(page)) == 2
    page.get_by_role("button", name="Clear filters").click()
    wait_until(page, "document.querySelector('#shown').textContent.startsWith('All')")


def test_part_that_leaves_the_filter_leaves_the_focus_in_the_list(path, opened):
    page = opened(path)
    page.locator("#filters [name=review]").select_option("open")
    open_part(page, "part 7#")
    page.get_by_role("button", name="Fine", exact=True).click()
    page.keyboard.press("Escape")
    wait_until(page, "document.activeElement.closest('#grid .card') !== null")


def test_answers_stay_after_a_reload_and_are_not_shared_between_pages(path, cards, opened, browser):
    context = browser.new_context()
    page = opened(path, context)
    open_part(page, "part 5#")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    page.reload()
    assert progress(page) == "1 of 9 parts reviewed"
    assert page.locator("#review .lost").is_hidden()
    folder, made = cards
    other = write_card_page(made, folder / "other" / "report.html", title="Parts", review=True)
    assert progress(opened(other, context)) == "0 of 9 parts reviewed"
    context.close()


def test_image_with_the_same_name_and_another_score_has_no_answer(path, cards, opened, browser, tmp_path):
    context = browser.new_context()
    page = opened(path, context)
    open_part(page, "part 5#")
    page.keyboard.press("d")
    folder, made = cards
    # All pictures stay: the open page may still load them.
    changed = [replace(c, score=c.score + 0.25 * (i == 5)) for i, c in enumerate(made)]
    write_card_page(changed, folder / "report.html", title="Parts", embed=None, review=True)
    page.reload()
    assert progress(page) == "0 of 9 parts reviewed"
    assert "1 answer is of a part that is no longer on this page." in page.locator("#review .old").text_content()
    target = saved(page, "Save them as CSV", tmp_path)
    assert read_labels(target)[["review", "score"]].to_numpy().tolist() == [["defect", -12.0]]
    assert "the rates of 'review' need all parts" in page.locator("#review .message").text_content()
    page.get_by_role("button", name="Delete them").click()
    assert page.locator("#review .old").is_hidden()
    assert page.evaluate("localStorage.length") == 0
    context.close()


def test_files_contain_all_parts_and_their_names_are_recovered(path, cards, opened, tmp_path):
    page = opened(path)
    page.get_by_role("button", name="Start review").click()
    page.get_by_label("Note", exact=True).fill('-1 "x", y\nü')
    page.locator("#viewer-title").focus()
    page.keyboard.press("u")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    page.get_by_label("Search names").fill("part 3")  # the filter does not limit the file
    table = saved(page, "Save as CSV", tmp_path)
    assert table.name == "review.csv"
    content = table.read_bytes()
    assert content.startswith(b"path,verdict,score,threshold,review,note,time\r\n")
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert {len(row) for row in rows} == {7}
    assert rows[1][5].startswith("'-1")
    labels = read_labels(table)
    by_path = {card.path: card for card in cards[1]}
    assert set(labels["path"]) == set(by_path)
    assert labels["path"][0] == f"/new/{ODD}"
    assert labels["note"][0] == '-1 "x", y\nü'
    assert labels["review"].tolist() == ["unsure", "defect", *[""] * 7]
    assert labels["verdict"].tolist() == [by_path[name].verdict for name in labels["path"]]
    np.testing.assert_array_equal(labels["score"], [-by_path[name].score for name in labels["path"]])
    assert set(labels["threshold"]) == {-10.0}
    assert labels["time"][0].endswith("Z")
    assert labels["time"][2] == ""
    other = read_labels(saved(page, "Save as JSON", tmp_path))
    assert labels.equals(other)
    assert "9 parts saved in review.json" in page.locator("#review .message").text_content()


def test_decision_that_the_person_saw_is_saved_after_the_threshold_was_moved(tmp_path, opened, browser):
    def page_of(threshold, context):
        group = CardGroup(threshold=threshold)
        cards = [
            Card(f"/new/{i}.png", "anomalous" if score > threshold else "normal", score, group)
            for i, score in enumerate([9.5, 9.0, 7.0])
        ]
        return opened(write_card_page(cards, tmp_path / "report.html", title="Parts", review=True), context)

    context = browser.new_context()
    page = page_of(8.0, context)
    open_part(page, "0.png")
    page.keyboard.press("d")
    page.close()
    page = page_of(10.0, context)
    open_part(page, "0.png")
    page.keyboard.press("f")  # another answer about the same part
    page.keyboard.press("Escape")
    assert page.locator("#grid .card.normal").count() == 3
    for kind in ("CSV", "JSON"):
        target = saved(page, f"Save as {kind}", tmp_path)
        labels = read_labels(target).set_index("path")
        assert labels["verdict"].tolist() == ["anomalous", "normal", "normal"]
        assert labels["threshold"].tolist() == [-8, -10, -10]
        assert labels["review"].tolist() == ["fine", "", ""]
        other = page_of(10.0, None)
        other.locator("#review input[type=file]").set_input_files(target)
        wait_until(other, "document.querySelector('#review .message').textContent !== ''")
        again = read_labels(saved(other, "Save as CSV", tmp_path)).set_index("path")
        assert again.equals(labels)
    context.close()


def test_scores_are_saved_with_all_digits(tmp_path, opened):
    score, threshold = 0.1 + 0.2, 1 / 3
    card = Card("/new/a.png", "normal", score, CardGroup(threshold=threshold))
    page = opened(write_card_page([card], tmp_path / "report.html", title="One", review=True))
    (row,) = read_labels(saved(page, "Save as CSV", tmp_path)).to_dict("records")
    assert (row["score"], row["threshold"]) == (-score, -threshold)


@pytest.mark.parametrize("kind", ["CSV", "JSON"])
def test_saved_answers_are_loaded_on_another_machine(path, cards, opened, tmp_path, kind):
    page = opened(path)
    page.get_by_role("button", name="Start review").click()
    page.get_by_label("Note", exact=True).fill("=1+1")
    page.locator("#viewer-title").focus()
    for key in "dfu":
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    target = saved(page, f"Save as {kind}", tmp_path)
    page = opened(path)
    page.locator("#review input[type=file]").set_input_files(target)
    wait_until(page, "document.querySelector('#review .message').textContent !== ''")
    assert page.locator("#review .message").text_content() == "3 answers loaded."
    assert progress(page) == "3 of 9 parts reviewed"
    assert "Note: =1+1" in page.locator("#grid .card").first.text_content()
    folder, made = cards
    fewer = write_card_page(made[:-1], folder / "fewer" / "report.html", title="Parts", review=True)
    page = opened(fewer)
    page.locator("#review input[type=file]").set_input_files(target)
    wait_until(page, "document.querySelector('#review .message').textContent !== ''")
    text = page.locator("#review .message").text_content()
    assert text == "2 answers loaded. 1 answer is of a part that is not on this page, or had another score: not loaded."


def test_newer_answer_of_the_page_stays_and_wrong_files_change_nothing(path, opened, tmp_path):
    page = opened(path)
    open_part(page, "part 5#")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    target = saved(page, "Save as JSON", tmp_path)
    content = json.loads(target.read_text(encoding="utf-8"))
    (row,) = [part for part in content["parts"] if part["review"]]
    row.update(review="fine", time="2020-01-01T00:00:00.000Z")
    load = page.locator("#review input[type=file]")
    message = page.locator("#review .message")
    load.set_input_files({"name": "old.json", "mimeType": "", "buffer": json.dumps(content).encode()})
    wait_until(page, "document.querySelector('#review .message').textContent.includes('newer')")
    assert message.text_content() == "0 answers loaded. 1 answer of this page is newer and stays."
    assert "Reviewed: defect" in page.locator("#grid .card", has_text="part 5#").text_content()
    for name, text in (("a.json", "{"), ("b.csv", "x,y\n1,2\n"), ("c.csv", "path,score,review\na,1,maybe\n")):
        load.set_input_files({"name": name, "mimeType": "", "buffer": text.encode()})
        wait_until(
            page, f"document.querySelector('#review .message').textContent.startsWith('{name} cannot be loaded')"
        )
    assert "the answer of part 1 is 'maybe'" in message.text_content()
    assert progress(page) == "1 of 9 parts reviewed"


def test_loaded_answer_completes_the_answer_of_the_page(path, opened, tmp_path):
    page = opened(path)
    for name, key, note in (("part 5#", "d", ""), ("part 4#", "", "scratch")):
        open_part(page, name)
        page.get_by_label("Note", exact=True).fill(note)
        page.locator("#viewer-title").focus()
        if key:
            page.keyboard.press(key)
        page.keyboard.press("Escape")
    content = json.loads(saved(page, "Save as JSON", tmp_path).read_text(encoding="utf-8"))
    with_note, with_mark = ({**p} for p in content["parts"] if p["review"] or p["note"])
    with_note.update(review="", note="dent", time="2999-01-01T00:00:00.000Z")  # newer
    with_mark.update(review="fine", note="", time="2020-01-01T00:00:00.000Z")  # older
    text = json.dumps({"parts": [with_note, with_mark]})
    page.locator("#review input[type=file]").set_input_files(
        {"name": "other.json", "mimeType": "", "buffer": text.encode()}
    )
    wait_until(page, "document.querySelector('#review .message').textContent !== ''")
    marks = [page.locator("#grid .card", has_text=name).locator(".answer") for name in ("part 5#", "part 4#")]
    assert marks[0].text_content() == "Reviewed: defectNote: dent"
    assert marks[1].text_content() == "Reviewed: fineNote: scratch"


@pytest.mark.parametrize("answer", ["constructor", "__proto__"])
def test_answer_with_the_name_of_an_own_property_of_objects_is_refused(path, opened, answer, tmp_path):
    page = opened(path)
    target = saved(page, "Save as JSON", tmp_path)
    content = json.loads(target.read_text(encoding="utf-8"))
    content["parts"][0]["review"] = answer
    load = page.locator("#review input[type=file]")
    load.set_input_files({"name": "a.json", "mimeType": "", "buffer": json.dumps(content).encode()})
    wait_until(page, "document.querySelector('#review .message').textContent.includes('cannot be loaded')")
    assert progress(page) == "0 of 9 parts reviewed"
    del content["parts"][0]["path"]
    load.set_input_files({"name": "b.json", "mimeType": "", "buffer": json.dumps(content).encode()})
    wait_until(page, "document.querySelector('#review .message').textContent.includes('part 1 has no path')")


def test_page_without_storage_says_so_and_warns_before_answers_are_lost(path, opened, tmp_path):
    page = opened(path, script=NO_STORAGE)
    assert "cannot keep the answers" in page.locator("#review .lost").text_content()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.type), dialog.dismiss()))
    open_part(page, "part 5#")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    assert progress(page) == "1 of 9 parts reviewed"
    page.close(run_before_unload=True)
    for _ in range(100):
        if dialogs:
            break
        page.wait_for_timeout(50)
    assert dialogs == ["beforeunload"]
    saved(page, "Save as CSV", tmp_path)
    with page.expect_event("close"):
        page.close(run_before_unload=True)
    assert dialogs == ["beforeunload"]


def test_full_storage_keeps_the_answers_in_memory(path, opened):
    full = "Storage.prototype.setItem = function (key, value) { if (value) throw new Error('full'); };"
    page = opened(path, script=full)
    assert page.locator("#review .lost").is_hidden()
    open_part(page, "part 5#")
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    assert progress(page) == "1 of 9 parts reviewed"
    assert page.locator("#review .lost").is_visible()


def test_random_order_does_not_depend_on_the_answers(path, opened):
    page = opened(path)
    worst_first = names(page)
    page.get_by_label("Sort by").select_option("random")
    order = names(page)
    assert sorted(order) == sorted(worst_first)
    assert order != worst_first
    open_part(page, order[3])
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    page.get_by_label("Sort by").select_option("score")
    page.get_by_label("Sort by").select_option("random")
    assert names(page) == order


def test_phone_has_large_buttons_and_no_overflow(path, opened):
    page = opened(path, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    overflow = "[document.documentElement.scrollWidth, innerWidth]"
    page.locator("#controls summary").tap()
    assert page.evaluate(overflow) == [390, 390]
    page.locator("#grid .card button").nth(1).tap()
    page.get_by_role("button", name="Defect", exact=True).tap()
    assert pressed(page) == ["defect"]
    assert page.evaluate(overflow) == [390, 390]
    small = """() => [...document.querySelectorAll("button, select, summary, textarea, .chip")].filter(e => {
        const box = e.getBoundingClientRect();
        return e.getClientRects().length && Math.min(box.height, box.width) < 43.9;
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(small) == []
    for selector in (".stage", ".judge", ".steps", "#viewer .verdict"):
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= 844.5, selector
    page.get_by_role("button", name="Next not reviewed").tap()
    assert title(page).startswith("3 of 9")


def test_print_shows_mark_and_note(path, opened):
    page = opened(path)
    open_part(page, "part 7#")
    page.get_by_label("Note", exact=True).fill("word " * 150)
    page.get_by_role("button", name="Defect", exact=True).click()
    page.keyboard.press("Escape")
    sheets = pytest.importorskip("pypdf").PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True))).pages
    text = " ".join(" ".join(sheet.extract_text().split()) for sheet in sheets)
    assert text.count("Reviewed: defect") == 1
    assert text.count("word") == 150
    assert "Save as CSV" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(path, opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(path, color_scheme=scheme, script=NO_STORAGE)

    def serious():
        found = axe.run(page).response["violations"]
        return [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]

    open_part(page, "part 7#")
    for key in "dfu":
        page.keyboard.press(key)
        page.get_by_label("Note", exact=True).fill("a note")
        page.locator("#viewer-title").focus()
    page.get_by_role("button", name="Fine", exact=True).click()
    assert serious() == []
    page.keyboard.press("Escape")
    assert serious() == []
    page.get_by_role("button", name="Table").click()
    assert serious() == []


def test_all_controls_are_reached_by_the_keyboard_with_a_visible_focus(path, opened):
    page = opened(path)
    page.get_by_role("button", name="Start review").focus()
    reached = []
    for _ in range(4):
        style = "getComputedStyle(document.activeElement).outlineStyle"
        reached.append((page.evaluate("document.activeElement.textContent"), page.evaluate(style)))
        page.keyboard.press("Tab")
    assert [text for text, _ in reached] == ["Start review", "Save as CSV", "Save as JSON", "Load answers"]
    assert {style for _, style in reached[1:]} == {"solid"}


def test_page_without_review_has_no_controls(cards, opened):
    folder, made = cards
    page = opened(write_card_page(made, folder / "plain" / "report.html", title="Parts"))
    assert page.locator("#review, .judge, [name=review]").count() == 0
    open_part(page, "part 7#")
    page.keyboard.press("d")
    assert page.evaluate("localStorage.length") == 0
