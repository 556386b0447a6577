"""``skpatchcore demo``: its texts, its progress, and its page, which replaces the page of an earlier run."""

from __future__ import annotations

import re

import numpy as np
import pytest

from skpatchcore._utils.progress import follow_progress, progress_bar
from skpatchcore.cli import demo
from skpatchcore.cli.main import main
from skpatchcore.datasets import make_textures
from tests.reports.pages import cards_of, data_of


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A demonstration with few training images and a fast network: its folder, its output, and its bar."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "skpatchcore.datasets.make_textures", lambda *given, **more: make_textures(*given, n_views=1, **more)
        )
        lines: list[str] = []
        page = demo.run_demo(folder, "efficientnet_lite0", tell=lines.append)
    return page, "\n".join(lines)


@pytest.fixture
def stub(monkeypatch):
    """Replace the work of the demonstration, and return its arguments."""
    given = []

    def run(folder, *arguments, **more):
        given.append((folder, arguments, more))
        return folder

    monkeypatch.setattr(demo, "run_demo", run)
    return given


def test_demo_explains_its_numbers_and_ends_with_the_page(shown):
    page, text = shown
    lines = text.splitlines()
    assert lines[-1] == str(page.resolve())
    assert "Open this page in a web browser" in lines[-2]
    titles = next(line for line in lines if line.startswith("surface"))
    for title in ("defects found", "good flagged", "image AUROC", "pixel AUROC", "network s", "search s"):
        assert title in titles
        assert any(line.startswith(title) for line in lines), title
    for surface in ("brick", "grass", "gravel"):
        assert any(re.match(rf"{surface} +\d+ of 32 +\d+ of 16 +[01]\.\d{{3}}", line) for line in lines)
        assert any(line.startswith(f"- {surface}: ") for line in lines)


def test_demo_page_has_a_group_per_surface_with_masks_and_nearest_patches(shown):
    page, _ = shown
    assert sorted(group["name"] for group in data_of(page)["groups"]) == ["brick", "grass", "gravel"]
    cards = cards_of(page)
    assert len(cards) == 144
    assert sum("truth" in card for card in cards) == 96
    assert all(
        "nearest" in card and card["nearest"]["nominal"].startswith(("data:", "report_files/")) for card in cards
    )
    assert {card["note"] for card in cards} == {
        "Known: good", *(f"Known: defective ({kind})" for kind in ("scratch", "blob", "stain", "foreign"))
    }  # fmt: skip
    for card in cards:
        assert (page.parent / card["link"]).is_file()
    assert "scores.csv" not in page.read_text(encoding="utf-8")


def test_demo_removes_images_of_an_earlier_run_only(tmp_path):
    images = tmp_path / "images"
    for name in ("brick/test/scratch-77.png", "brick/train/piece-00-view-9.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"old")
    kept = [images / "brick/test/mine.png", images / "brick/notes.txt", tmp_path / "scratch-77.png"]
    for path in kept:
        path.write_text("mine")
    demo.remove_images(images)
    assert not (images / "brick/test/scratch-77.png").exists()
    assert not (images / "brick/train/piece-00-view-9.png").exists()
    assert all(path.read_text() == "mine" for path in kept)
    demo.remove_images(tmp_path / "gone")


def test_demo_writes_only_names_that_the_next_run_removes(shown):
    page, _ = shown
    names = [path.name for path in (page.parent / "images").rglob("*.png")]
    assert len(names) == 3 * (12 + 48)
    assert all(demo._OWN_NAME.fullmatch(name) for name in names)


@pytest.mark.parametrize(("is_terminal", "words", "expected"), [
    (True, [], True), (False, [], False), (True, ["--quiet"], False),
])  # fmt: skip
def test_demo_shows_progress_on_terminals_unless_quiet(tmp_path, monkeypatch, stub, is_terminal, words, expected):
    monkeypatch.setattr("skpatchcore._utils.console.TolerantStream.isatty", lambda self: is_terminal, raising=False)
    assert main(["demo", "-o", str(tmp_path / "out"), *words]) == 0
    ((_, _, more),) = stub
    assert more["show_progress"] is expected


def test_quiet_demo_prints_nothing(tmp_path, monkeypatch, capsys):
    def run(folder, backbone, seed, tell, show_progress):
        tell("text")

    monkeypatch.setattr(demo, "run_demo", run)
    assert main(["demo", "-o", str(tmp_path / "out"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize(
    ("auroc", "found", "expected"),
    [(0.99, 32, "an easy surface"), (0.9, 9, "with --contamination 0.1"), (0.7, 12, "no threshold can")],
)
def test_conclusions_follow_from_the_numbers(auroc, found, expected):
    surface = demo._Surface("brick", auroc, 0.9, 0, found, 16, 32)
    assert expected in " ".join(demo._conclusions([surface]).lower().split())


def test_follow_progress_reports_the_units_of_inner_work():
    seen = []
    with follow_progress(lambda description, n: seen.append((description, n))):
        with progress_bar(3, "work", "image", 0) as bar:
            for n in (1, 2):
                bar.update(n)
    with progress_bar(1, "later", "image", 0) as bar:
        bar.update()
    assert seen == [("work", 1), ("work", 2)]


def test_fit_of_the_demo_advances_the_bar_by_its_images():
    with progress_bar(10, "demo", "image", 0) as bar:
        with demo._shown(bar, "brick", 6), progress_bar(9, "extracting features", "image", 0) as inner:
            for _ in range(9):  # more than the images of the fit
                inner.update()
            assert bar.n == 6
        assert bar.n == 6
        with demo._shown(bar, "brick", 4):
            pass  # features from a cache report nothing
        assert bar.n == 10
    assert np.isfinite(bar.n)
