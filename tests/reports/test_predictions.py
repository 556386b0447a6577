"""The table of predictions and its heat maps: complete, even if single images or files fail."""

from __future__ import annotations

import _thread
import csv
import ntpath
import os
import threading
import time
from pathlib import Path, PureWindowsPath
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skpatchcore import PatchCoreDetector
from skpatchcore._utils.names import shown_name
from skpatchcore.images import files, reading
from skpatchcore.images.reading import load_image
from skpatchcore.reports import heat_maps, predictions, read_predictions, write_prediction_report, write_predictions
from skpatchcore.reports.predictions import picture_names
from tests.factories import CellMeans
from tests.reports.pages import Darkness, cards_of, photo


def write_report(written, folder, **options):
    return write_prediction_report(written, Darkness(), folder, **options)


def rows(folder):
    with (Path(folder) / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


HARD_NAMES = [
    b"ros\xe9.png", "ros\\xe9.png", "a\nb.png", "a\rb.png", "a,b;c.png", "a\"b'c.png", "$x^$.png", "<b>&amp;.png",
    "CON.png", "a:b?.png", "a. .png", "part.png", "Part.png", "PART.PNG", "é.png", "e\u0301.png", "é" * 120 + ".png",
    "\u202egnp.png", "-o.png", "a%41.png", "tab\t.png", b"\xff\xfe.png",
]  # fmt: skip


@pytest.fixture
def hard(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    made = [os.path.join(os.fsencode(folder), os.fsencode(name)) for name in HARD_NAMES]
    try:
        return [os.fsdecode(photo(path, 100 + i)) for i, path in enumerate(made)]
    except OSError:
        pytest.skip("the file system refuses such names")


def test_write_predictions_hard_names_have_a_row_a_map_and_a_card(hard, tmp_path):
    folder = tmp_path / "out"
    written = write_predictions(Darkness(), hard, folder)
    assert [p.path for p in written] == hard
    assert not [p.problem for p in written if p.problem]
    read = read_predictions(folder)
    assert [p.path for p in read] == hard
    assert [p.score for p in read] == [p.score for p in written]
    assert len({p.picture.casefold() for p in read}) == len(hard)
    for prediction, value in zip(read, range(100, 200), strict=False):  # each map is of its image
        with Image.open(folder / prediction.picture) as picture:
            assert picture.getpixel((0, 0))[0] == pytest.approx(value, abs=40)
            assert picture.size == (8, 6)
    target = write_prediction_report(read, Darkness(), folder)
    assert sum(card["image"].startswith("data:image/jpeg") for card in cards_of(target)) == len(hard)
    assert sorted(card["path"] for card in cards_of(target)) == sorted(map(shown_name, hard))
    page = target.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<td>ros\\xe9.png</td>" in page  # the plain table
    assert "\\x5cx5c" not in page


def test_table_writes_ordinary_names_unescaped(tmp_path):
    path = photo(tmp_path / "Größe.png")
    write_predictions(Darkness(), [path], tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert (row["path"], row["map"], row["problem"]) == (path, "Größe.png", "")


@pytest.mark.parametrize("fault", ["full disk", "folder in the way", "image gone"])
def test_a_heat_map_that_cannot_be_written_leaves_all_scores(tmp_path, monkeypatch, fault):
    paths = [photo(tmp_path / f"{i}.png", 40 * i) for i in range(4)]
    folder = tmp_path / "out"
    if fault == "folder in the way":
        (folder / "1.png").mkdir(parents=True)
    elif fault == "full disk":
        save = Image.Image.save

        def full(self, target, *more, **options):
            if isinstance(target, Path) and target.name.startswith(".1."):
                raise OSError(28, "No space left on device")
            save(self, target, *more, **options)

        monkeypatch.setattr(Image.Image, "save", full)
    else:
        monkeypatch.setattr(
            heat_maps, "load_image", lambda p, i, **k: load_image(p if p != paths[1] else p + ".gone", i)
        )
    written = write_predictions(Darkness(), paths, folder)
    assert [p.picture for p in written] == ["0.png", None, "2.png", "3.png"]
    assert [bool(p.problem) for p in written] == [False, True, False, False]
    table = rows(folder)
    assert [float(row["score"]) for row in table] == [p.score for p in written]
    assert "'1.png' could not be written" in table[1]["problem"]
    assert not list(folder.glob(".*"))
    monkeypatch.undo()
    cards = {os.path.basename(card["path"]): card for card in cards_of(write_report(written, folder))}
    assert "'1.png' could not be written" in cards["1.png"]["problem"]
    assert all("image" in card for card in cards.values())  # the page has pictures of its own


def test_report_says_why_a_deleted_image_is_not_shown(tmp_path):
    paths = [photo(tmp_path / f"{i}.png") for i in range(3)]
    written = write_predictions(Darkness(), paths, tmp_path / "out")
    os.remove(paths[0])
    (tmp_path / "out" / "1.png").unlink()
    cards = {os.path.basename(card["path"]): card for card in cards_of(write_report(written, tmp_path / "out"))}
    assert ["image" in cards[name] for name in ("0.png", "1.png", "2.png")] == [False, True, True]
    assert "the image cannot be shown: no such file" in cards["0.png"]["problem"]
    assert cards["0.png"]["verdict"] == "normal"  # as it was scored


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (3000, 2000)])
def test_report_shows_images_of_any_shape(tmp_path, size):
    path = photo(tmp_path / "a.png", size=size)
    written = write_predictions(Darkness(), [path], tmp_path / "out")
    (card,) = cards_of(write_report(written, tmp_path / "out"))
    assert card["size"] == list(size)
    assert all(card[kind].startswith("data:image/") for kind in ("thumb", "image", "map"))


def test_write_predictions_removes_only_files_of_an_earlier_run(tmp_path):
    old, new, folder = photo(tmp_path / "old.png"), photo(tmp_path / "new.png"), tmp_path / "out"
    write_prediction_report(write_predictions(Darkness(), [old], folder), Darkness(), folder)
    photo(folder / "foreign.png")
    outside = photo(tmp_path / "outside.png")
    with (folder / "scores.csv").open("a") as file:
        file.write("x,1,1,1,1,../outside.png,\nx,1,1,1,1,notes.txt,\n")
    (folder / "notes.txt").write_text("mine")
    write_predictions(Darkness(), [new], folder)
    assert sorted(p.name for p in folder.iterdir()) == ["foreign.png", "new.png", "notes.txt", "scores.csv"]
    assert os.path.exists(outside)


def test_write_predictions_keeps_a_foreign_report(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("<title>skpatchcore evaluate: parts</title>")
    write_predictions(Darkness(), [photo(tmp_path / "a.png")], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists()


def test_write_predictions_keeps_an_image_in_the_output_folder(tmp_path):
    path = photo(tmp_path / "a.png", 7)
    with open(path, "rb") as file:
        before = file.read()
    for _ in range(2):
        (written,) = write_predictions(Darkness(), [path], tmp_path)
        assert written.picture == "a-2.png"
        with open(path, "rb") as file:
            assert file.read() == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_write_predictions_replaces_a_link_at_the_place_of_a_map(tmp_path):
    other = photo(tmp_path / "other.png", 7)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(other)
    with open(other, "rb") as file:
        before = file.read()
    write_predictions(Darkness(), [photo(tmp_path / "a.png")], tmp_path / "out")
    with open(other, "rb") as file:
        assert file.read() == before


class WindowsPath(PureWindowsPath):
    def resolve(self):
        return self


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([r"C:\parts\1.png", r"D:\parts\1.png"], ["C_parts_1.png", "D_parts_1.png"]),
        ([r"\\host\a\1.png", r"\\host\b\1.png", r"C:\1.png"], ["host_a_1.png", "host_b_1.png", "C_1.png"]),
        ([r"C:\parts\1.png", r"C:\parts\x\CON.png"], ["1.png", "x_CON.png"]),
        ([r"C:\CON.png"], ["%43ON.png"]),
    ],
)
def test_picture_names_distinguish_windows_drives(paths, names):
    with mock.patch.object(predictions, "Path", WindowsPath), mock.patch.object(predictions.os, "path", ntpath):
        assert list(picture_names(paths).values()) == names


@given(
    st.lists(
        st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=5).map(
            lambda parts: "/" + "/".join(os.fsdecode(p.replace(b"/", b"_").replace(b"\0", b"_")) for p in parts)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_picture_names_are_unique_and_short_for_any_paths(paths):
    names = picture_names(paths, taken=["a.png"])
    assert set(names) == set(paths)
    assert len({name.casefold() for name in names.values()} | {"a.png"}) == len(set(paths)) + 1
    assert all(len(os.fsencode(name)) <= 140 and name == os.path.basename(name) for name in names.values())


def test_read_predictions_refuses_a_damaged_table(tmp_path):
    (tmp_path / "scores.csv").write_text("path,score\nx,1\n")
    with pytest.raises(ValueError, match="no table of predictions"):
        read_predictions(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "nowhere")


def test_write_predictions_reads_each_file_once(tmp_path, monkeypatch):
    paths = [photo(tmp_path / f"{i}.png", 40 * i, size=(64, 48)) for i in range(7)]
    (tmp_path / "3.png").write_bytes(b"no image")
    detector = PatchCoreDetector(CellMeans(), calibration=None, random_state=0).fit([paths[0], paths[1]])
    opened = []
    read = files.read_content
    for place in (reading, files):
        monkeypatch.setattr(place, "read_content", lambda path, index: opened.append(path) or read(path, index))
    written = write_predictions(detector, paths, tmp_path / "out", layers=True)
    assert [p.picture for p in written] == [None if i == 3 else f"{i}.png" for i in range(7)]
    assert [p.layers is None for p in written] == [i == 3 for i in range(7)]
    assert type(written[0].path) is str
    assert {path: opened.count(path) for path in paths if path != paths[3]} == {p: 1 for p in paths if p != paths[3]}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, ValueError])
@pytest.mark.parametrize("place", ["network", "callback"])
def test_interrupted_write_predictions_keeps_the_rows_of_scored_images(tmp_path, stop, place):
    paths = [photo(tmp_path / f"{i}.png", 40 * i) for i in range(6)]

    class Interrupted(Darkness):
        def iter_results(self, X, on_error="flag"):
            for result in super().iter_results(X, on_error):
                if result.index == 4 and place == "network":
                    raise stop
                yield result

    def show(prediction):
        if place == "callback" and prediction.path == paths[2]:
            raise stop

    with pytest.raises(stop):
        write_predictions(Interrupted(), paths, tmp_path / "out", on_prediction=show)
    read = read_predictions(tmp_path / "out")
    assert [p.path for p in read] == paths[: len(read)]
    assert len(read) >= 3 if place == "callback" else len(read) == 4
    assert all((tmp_path / "out" / p.picture).is_file() for p in read)


def test_write_predictions_is_the_same_for_any_number_of_threads(tmp_path, monkeypatch):
    paths = [photo(tmp_path / f"{i}.png", 30 * i, size=(40 + i, 30)) for i in range(8)]
    found = {}
    for n_cores in (2, 8):
        monkeypatch.setattr(predictions, "n_cores", lambda n=n_cores: n)
        folder = tmp_path / f"out{n_cores}"
        write_predictions(Darkness(), paths, folder, layers=True)
        ours = [file for file in folder.rglob("*") if file.is_file()]
        # the list of pictures names them in the order in which they were written
        found[n_cores] = {str(f.relative_to(folder)): sorted(f.read_bytes().splitlines()) for f in ours}
    assert found[2] == found[8]
    assert len(found[2]) > 8


def test_write_predictions_of_a_repeated_path_has_a_map_in_each_row(tmp_path, monkeypatch):
    paths = [photo(tmp_path / "a.png")] * 3
    together, replace = threading.Barrier(len(paths), timeout=60), os.replace
    monkeypatch.setattr(predictions, "_n_threads", lambda: len(paths))
    monkeypatch.setattr(heat_maps.os, "replace", lambda *names: together.wait() >= 0 and replace(*names))
    written = write_predictions(Darkness(), paths, tmp_path / "out")
    assert [(p.picture, p.problem) for p in written] == [("a.png", "")] * 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "scores.csv"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, None])
def test_image_whose_drawing_raises_leaves_the_rows_of_all_other_scored_images(tmp_path, monkeypatch, stop):
    paths = [photo(tmp_path / f"{i}.png", 40 * i) for i in range(6)]
    scored, draw = threading.Event(), predictions.write_heat_map

    class Stopped(Darkness):
        def iter_results(self, X, on_error="flag"):
            yield from super().iter_results(X, on_error)
            scored.set()
            if stop is not None:
                raise stop

    def failing(result, *more):
        assert scored.wait(60)
        if result.index in (1, 3):
            raise RuntimeError(f"image {result.index}")
        return draw(result, *more)

    monkeypatch.setattr(predictions, "write_heat_map", failing)
    with pytest.raises(stop or RuntimeError, match=None if stop else "image 1"):
        write_predictions(Stopped(), paths, tmp_path / "out")
    read = read_predictions(tmp_path / "out")
    assert [p.path for p in read] == [paths[i] for i in (0, 2, 4, 5)]
    assert all((tmp_path / "out" / p.picture).is_file() for p in read)


@pytest.mark.parametrize("place", ["before", "after"])
def test_interruption_at_a_row_neither_loses_nor_repeats_the_row(tmp_path, monkeypatch, place):
    paths = [photo(tmp_path / f"{i}.png", 40 * i) for i in range(6)]
    write, main, scored = predictions._Table.write, threading.main_thread(), threading.Event()

    def interrupted(table, prediction):  # as Ctrl-C, which Python raises in the main thread only
        if place == "after":
            write(table, prediction)
        if prediction.path == paths[2]:
            if threading.current_thread() is main:
                raise KeyboardInterrupt
            assert scored.wait(60)
            _thread.interrupt_main()
        if place == "before":
            write(table, prediction)

    class Slow(Darkness):
        def iter_results(self, X, on_error="flag"):
            yield from super().iter_results(X, on_error)
            scored.set()
            for _ in range(200):  # until the interruption
                time.sleep(0.1)

    monkeypatch.setattr(predictions._Table, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(Slow(), paths, tmp_path / "out")
    assert [p.path for p in read_predictions(tmp_path / "out")] == paths
