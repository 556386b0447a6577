"""The report page in a headless browser: filters, viewer, keyboard, print, phone, dark, accessibility."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from skpatchcore.reports import Card, CardGroup, Nearest, write_card_page
from skpatchcore.reports.inspection import describe_inspection
from skpatchcore.reports.layers import write_layers
from skpatchcore.reports.pictures import PictureFolder

N_READ = 13
GROUP = CardGroup(threshold=10.0, pixel_threshold=0.5, calibration_scores=np.arange(3.0, 11.0), promise="None flagged.")


def card_of(i, folder, pictures, group=GROUP):
    """Return a card: the higher `i`, the more anomalous. 4 of 13 are normal; one verdict differs from the outline."""
    heat = np.zeros((48, 64))
    if i >= 4:
        heat[10:30, 20 : 22 + i] = 1
    if i in (3, 6):  # a region in a normal image, no region in an anomalous one
        heat = 1 - heat if i == 3 else 0 * heat
    if i == 12:  # a margin that is not inspected
        heat = np.pad(heat[4:44, 8:56], ((4, 4), (8, 8)), constant_values=np.nan)
    layers = write_layers(np.full((48, 64, 3), 0.2 + i / 30), heat, 0.5, pictures)
    score = 7.0 + i - (0 if i >= 4 else 0.5)
    crop = pictures.write(f"{pictures.new_stem()}.patch.jpg", Image.new("RGB", (40, 40), "red"))
    nominal = pictures.write(f"{pictures.new_stem()}.nominal.jpg", Image.new("RGB", (40, 40), "green"))
    return Card(
        path=str(folder / ("left" if i % 2 else "right") / f"part {i}#%.png"),
        verdict="anomalous" if score > group.threshold else "normal",
        score=score,
        group=group,
        layers=layers,
        nearest=Nearest("/train/good/7.png", 1.5, crop, nominal) if i >= 4 else None,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages of the same cards: one with the pictures inside, one with a folder of pictures."""
    folder = tmp_path_factory.mktemp("page")
    pictures = PictureFolder(folder)
    cards = [card_of(i, folder / "new", pictures) for i in range(N_READ)]
    hostile = "<script>alert(1)</script>\n\"'\udce9.png"
    cards.append(
        Card(
            str(folder / "new" / "left" / hostile),
            "unreadable",
            float("nan"),
            GROUP,
            problem="<img src=x onerror=alert(1)>",
        )
    )
    other = folder / "inside"
    shutil.copytree(folder / "report_files", other / "report_files")
    beside = write_card_page(cards, folder / "report.html", title="Parts", embed=None)
    inside = write_card_page(cards, other / "report.html", title="Parts")
    return {"beside": beside, "inside": inside}


@pytest.fixture
def opened(browser):
    """Return a function that opens a page. Errors on the console and requests to other than files fail the test."""
    contexts, problems = [], []

    def opened(path, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:100]}"))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def wait_until(page, condition):
    """Wait until a condition holds; the page's policy forbids playwright's own way, which evaluates texts."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never true: {condition}")


def names(page, selector="#grid .card .name"):
    return page.locator(selector).all_text_contents()


def numbers(page):
    """Return the numbers in the names of the shown cards, in their order."""
    return [int(name.split("part ")[1].split("#")[0]) for name in names(page) if "part" in name]


@pytest.mark.parametrize("kind", ["inside", "beside"])
def test_page_shows_the_unreadable_image_first_then_the_worst(made, opened, kind):
    page = opened(made[kind])
    assert page.locator("h1").text_content() == "9 of 14 parts are anomalous, 1 could not be read"
    assert "Not readable" in page.locator("#grid .card").first.text_content()
    assert "<img src=x onerror=alert(1)>" in page.locator("#grid .card").first.text_content()
    assert names(page)[0] == "left/<script>alert(1)</script>\\x0a\"'\\xe9.png"
    assert numbers(page) == list(range(12, -1, -1))
    shown = page.locator("#grid .card img").first
    shown.scroll_into_view_if_needed()
    wait_until(page, "[...document.images].some(i => i.closest('.card') && i.naturalWidth === 320)")


def test_cards_say_which_threshold_decided(made, opened):
    page = opened(made["inside"])
    card = page.locator("#grid .card", has_text="part 3#").text_content()
    assert "Normal: the anomaly score is not above the image threshold. 1 region is above the pixel threshold." in card
    card = page.locator("#grid .card", has_text="part 6#").text_content()
    assert "Anomalous: the anomaly score is above the image threshold. No pixel is above the pixel threshold." in card
    card = page.locator("#grid .card", has_text="part 0#").text_content()
    assert "4 of 8 good images score as badly" in card
    assert "inspected" not in card
    card = page.locator("#grid .card", has_text="part 12#").text_content()
    assert "Only 63 % of the image is inspected" in card


def test_head_states_what_is_inspected_and_explains_all_marks(made, opened):
    page = opened(made["inside"])
    assert "Inspected" in page.locator(".facts").text_content()
    assert "at least 62.5 % of the pixels of each image" in page.locator(".facts").text_content()
    marks = page.locator(".legend li").all_text_contents()
    assert [mark.split(":")[0].split(",")[0] for mark in marks] == [
        "line around the pixels above the pixel threshold", "not inspected", "box around a region", "anomaly map",
    ]  # fmt: skip


def test_head_states_that_whole_images_are_inspected(tmp_path, opened):
    cards = [card_of(i, tmp_path / "new", PictureFolder(tmp_path)) for i in range(2)]
    page = opened(write_card_page(cards, tmp_path / "report.html", title="Parts"))
    assert "the whole of each image" in page.locator(".facts").text_content()
    assert "not inspected" not in page.locator(".legend").text_content()


def test_filters_by_verdict_folder_text_and_range(made, opened):
    page = opened(made["inside"])
    status = page.locator("#shown")
    assert status.text_content() == "All 14 parts shown"
    page.get_by_label("Anomalous (9)").uncheck()
    assert numbers(page) == [3, 2, 1, 0]
    assert status.text_content() == "5 of 14 parts shown"
    page.get_by_label("Folder").select_option("right")
    assert numbers(page) == [2, 0]
    page.get_by_role("button", name="Clear filters").click()
    wait_until(page, "document.querySelector('#shown').textContent.startsWith('All')")
    page.get_by_label("Search names").fill("PART 1")
    assert numbers(page) == [12, 11, 10, 1]
    page.get_by_label("from", exact=True).fill("18")
    assert numbers(page) == [12, 11]
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_role("button", name="Show only these").click()
    assert len(names(page)) == 1


def test_sorts_by_name_and_by_region(made, opened):
    page = opened(made["inside"])
    page.get_by_label("Sort by").select_option("-score")
    assert numbers(page) == list(range(13))
    page.get_by_label("Sort by").select_option("size")
    assert numbers(page)[:3] == [3, 12, 11]
    page.get_by_label("Sort by").select_option("name")
    assert numbers(page) == [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10, 12]


def test_histogram_bars_select_by_mouse_and_keyboard(made, opened):
    page = opened(made["inside"])
    bars = page.locator("#histogram g[role=button]")
    assert bars.last.locator("title").text_content().startswith("1 part with scores from")
    assert sum(int(count) for count in page.locator("#histogram .count").all_text_contents()) == N_READ
    assert "square roots" in page.locator("#histogram .note").text_content()
    bars.last.click()
    assert numbers(page) == [12]
    assert bars.last.get_attribute("aria-pressed") == "true"
    bars.last.click()
    assert len(numbers(page)) == N_READ
    bars.first.focus()
    page.keyboard.press("Enter")
    assert len(numbers(page)) < N_READ
    page.keyboard.press("ArrowRight")
    assert bars.nth(1).evaluate("bar => bar === document.activeElement")
    assert page.locator("#histogram .threshold").count() == 1


@pytest.mark.parametrize("kind", ["inside", "beside"])
def test_viewer_opens_and_steps_by_keyboard(made, opened, kind):
    page = opened(made[kind])
    card = page.locator("#grid .card", has_text="part 12#").locator("button")
    card.focus()
    page.keyboard.press("Enter")
    title = page.locator("#viewer-title")
    assert title.text_content() == "2 of 14: right/part 12#%.png"
    wait_until(page, "document.querySelector('.sheet .image').naturalWidth === 64")
    assert page.locator(".sheet .map").is_hidden()
    page.get_by_label("Image", exact=True).uncheck()
    assert page.locator(".sheet .image").is_hidden()
    page.get_by_label("Map opacity").fill("20")  # also shows the map
    assert page.get_by_label("Map", exact=True).is_checked()
    wait_until(page, "document.querySelector('.sheet .map').naturalWidth === 64")
    assert page.locator(".sheet .map").is_visible()
    assert "0.75 to 1.75 times the pixel threshold" in page.locator(".tools .scale").text_content()
    assert page.locator(".sheet .map").evaluate("layer => layer.style.opacity") == "0.2"
    page.get_by_label("Map opacity").press("ArrowRight")  # belongs to the slider
    assert title.text_content().startswith("2 of")
    assert page.locator(".boxes .region").count() == 1
    assert page.locator(".unseen").get_attribute("src")  # stripes over the margin that is not inspected
    page.get_by_role("checkbox", name="Not inspected").uncheck()
    assert page.locator(".unseen").is_hidden()
    assert "pixels, box" in page.locator(".areas button").first.text_content()
    for crop in page.locator(".pair img").all():
        assert crop.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 40
    assert "/train/good/7.png" in page.locator(".near .note").text_content()
    assert page.locator(".file").get_attribute("href").endswith("new/right/part%2012%23%25.png")
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    assert title.text_content() == "3 of 14: left/part 11#%.png"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.text_content().startswith("1 of 14")
    assert page.locator(".missing").text_content() == "<img src=x onerror=alert(1)>"
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    page.keyboard.press("Escape")
    assert page.locator("#viewer").is_hidden()
    wait_until(page, "document.activeElement.textContent.startsWith('Anomalousleft/part 11#')")


def test_viewer_zooms_to_a_region(made, opened):
    page = opened(made["inside"])
    page.locator("#grid .card", has_text="part 12#").click()
    before = page.locator(".sheet").evaluate("sheet => sheet.clientWidth")
    page.locator(".areas button").first.click()
    assert page.locator(".sheet").evaluate("sheet => sheet.clientWidth") > 1.5 * before
    assert page.locator(".boxes .chosen").count() == 1


def test_table_shows_all_numbers_and_opens_the_viewer(made, opened):
    page = opened(made["inside"])
    page.get_by_role("button", name="Table").click()
    cells = page.locator("#table tbody tr").nth(1).locator("td").all_text_contents()
    assert cells[:8] == ["right/part 12#%.png", "Anomalous", "19", "10", "0 of 8", "1", "280", "64 × 48"]
    page.locator("#table tbody tr").nth(1).locator("button").click()
    assert page.locator("#viewer-title").text_content().startswith("2 of 14")


def printed(page, start):
    """Return the sheets of a printed page. `start` starts the page's own print function."""
    # A statement, not an expression: playwright calls the value of an expression if the value is a function.
    page.evaluate("""() => { window.wasPrinted = false; window.print = () => {
        const pictures = [...document.querySelectorAll("#grid img")];
        window.nLoaded = pictures.filter(picture => picture.complete && picture.naturalWidth).length;
        window.wasPrinted = true;
    }; }""")
    assert not page.evaluate("window.wasPrinted")
    start()
    wait_until(page, "window.wasPrinted")
    return pytest.importorskip("pypdf").PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True))).pages


@pytest.mark.parametrize("mode", ["Grid", "Table"])
def test_print_puts_six_parts_on_a_page(made, opened, mode):
    page = opened(made["beside"])
    page.get_by_role("button", name=mode).click()
    sheets = printed(page, page.get_by_role("button", name="Print").click)
    # the first sheet also has the image that could not be read
    assert [sheet.extract_text().count("part ") for sheet in sheets] == [5, 6, 2]
    assert [len(sheet.images) for sheet in sheets] == [5, 6, 2]
    assert sheets[0].mediabox.height == pytest.approx(842, abs=1)
    page.get_by_label("Search names").fill("part 1")
    sheets = printed(page, lambda: page.keyboard.press("Control+p"))
    assert [sheet.extract_text().count("part ") for sheet in sheets] == [4]


def test_print_shows_the_whole_head_and_six_parts_with_a_crop(tmp_path, opened):
    pictures = PictureFolder(tmp_path)
    promise = (
        "On average, at most about 3 of 100 good parts are flagged; this model may flag up to 10 (95 % confidence). "
        "This holds for good parts like those of the calibration. None of the 30 good images would be flagged."
    )
    group = replace(GROUP, promise=promise)
    cards = [card_of(12 if i == 11 else i, tmp_path / "new", pictures, group) for i in range(12)]
    inspected = describe_inspection({"/new/part 12.png": cards[11].layers.inspected})
    about = {"Model": "a-model-with-a-long-name.skops"}
    path = write_card_page(cards, tmp_path / "report.html", title="Crop", about=about, inspected=inspected)
    page = opened(path)
    page.emulate_media(media="print")
    heights = page.locator("header").evaluate("head => [head.scrollHeight, head.clientHeight]")
    assert heights[0] <= heights[1]
    page.emulate_media(media="null")
    sheets = printed(page, page.get_by_role("button", name="Print").click)
    assert [len(sheet.images) for sheet in sheets] == [6, 6]
    text = " ".join(sheets[0].extract_text().split())
    assert "Defects there are not found." in text
    assert "not inspected: dark" in text


def test_print_waits_for_pictures_far_below_the_window(tmp_path, opened):
    pictures = PictureFolder(tmp_path)
    cards = [replace(card_of(12, tmp_path / "new", pictures), score=20.0 + i) for i in range(100)]
    page = opened(write_card_page(cards, tmp_path / "report.html", title="Many", embed=None))
    sheets = printed(page, page.get_by_role("button", name="Print").click)
    assert page.evaluate("window.nLoaded") == 100
    assert [len(sheet.images) for sheet in sheets] == [6] * 16 + [4]


def test_all_filtered_cards_are_in_the_page_after_a_while(tmp_path, opened):
    """The browser's own print command prints the cards that the page holds."""
    cards = [Card(f"/new/{i}.png", "anomalous", 20.0 + i, GROUP) for i in range(700)]
    page = opened(write_card_page(cards, tmp_path / "report.html", title="Many"))
    wait_until(page, "document.querySelectorAll('#grid .card').length === 700")


def test_phone_shows_the_verdict_at_once_without_overflow(made, opened):
    page = opened(made["inside"], viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for place in (page.locator("h1"), page.locator("#grid .tag").first):
        box = place.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 844
    overflow = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(overflow) == [390, 390]
    page.locator("#controls summary").tap()
    assert page.evaluate(overflow) == [390, 390]
    page.locator("#grid .card button").nth(1).tap()
    assert page.locator("#viewer .verdict").is_visible()
    assert page.evaluate(overflow) == [390, 390]
    controls = "button, select, summary, input:not([type=checkbox]), .chip"
    small = """controls => [...document.querySelectorAll(controls)].filter(e => {
        const box = e.getBoundingClientRect();
        return e.getClientRects().length && Math.min(box.height, box.width) < 43.9;
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(small, controls) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(made, opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(made["inside"], color_scheme=scheme)

    def serious():
        found = axe.run(page).response["violations"]
        return [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]

    assert serious() == []
    page.get_by_role("button", name="Table").click()
    assert serious() == []
    page.locator("#table tbody button").nth(1).click()
    assert serious() == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) == (scheme == "dark")


def test_page_without_scripts_is_a_list_of_verdicts(made, opened):
    page = opened(made["inside"], java_script_enabled=False)
    rows = page.locator("noscript tr, table tr").all_text_contents()
    text = page.content()
    assert "left/&lt;script&gt;" in text
    assert "Anomalous" in text
    assert len(rows) >= 14
    assert page.locator("main").is_hidden()


def test_page_of_several_groups_compares_multiples_of_the_thresholds(tmp_path, opened):
    pictures = PictureFolder(tmp_path)
    groups = [CardGroup("brick", 10.0, 0.5, np.ones(3)), CardGroup("grass", 1000.0, 0.5, np.ones(4))]
    cards = [card_of(12, tmp_path / "new", pictures, groups[0]), card_of(5, tmp_path / "new", pictures, groups[1])]
    page = opened(write_card_page(cards, tmp_path / "demo.html", title="Demo"))
    assert numbers(page) == [12, 5]  # 1.9 times and 0.012 times the threshold
    assert "brick" in page.locator("#grid .card").first.text_content()
    page.get_by_label("Group").select_option("grass")
    assert numbers(page) == [5]
    assert "multiples" in page.locator("#histogram figcaption").text_content()


def test_thousands_of_cards_are_added_step_by_step(tmp_path, opened):
    cards = [Card(f"/new/{i}.png", "anomalous" if i > 900 else "normal", float(i), GROUP) for i in range(1500)]
    page = opened(write_card_page(cards, tmp_path / "report.html", title="Many"))
    page.get_by_role("button", name="Table").click()
    first = page.locator("#table tbody tr").count()
    assert 0 < first < 400
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    wait_until(page, f"document.querySelectorAll('#table tbody tr').length > {first}")
    page.get_by_role("button", name="Grid").click()
    page.get_by_label("Search names").fill("1499.png")
    assert names(page) == ["1499.png"]
