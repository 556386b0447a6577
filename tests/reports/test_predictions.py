"""The table of predictions and its heat maps: complete, whatever single images or files meet."""

from __future__ import annotations

import csv
import math
import ntpath
import os
from pathlib import Path, PureWindowsPath
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skpatchcore.detectors import ImageResult
from skpatchcore.images.reading import ImageError, load_image
from skpatchcore.reports import predictions as module
from skpatchcore.reports import read_predictions, write_prediction_report, write_predictions
from skpatchcore.reports.predictions import picture_names


class Darkness:
    """Stands for a detector: the score is the mean of the pixels."""

    offset_, pixel_offset_ = 0.4, 0.6
    calibration_scores_ = np.full(9, 0.5)
    extractor = "precomputed"

    def iter_results(self, X, on_error="flag"):
        for i, path in enumerate(X):
            try:
                pixels = load_image(path, i)
            except ImageError as error:
                yield ImageResult(i, path, math.nan, math.nan, -1, math.nan, None, error)
                continue
            score = float(pixels.mean())
            label = 1 if score >= self.offset_ else -1
            yield ImageResult(i, path, score, score - self.offset_, label, 0.5, 1 - pixels[..., 0], None)


def photo(path, value=128, size=(6, 8)):
    with open(path, "wb") as file:
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, "PNG")
    return os.fspath(path)


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


def test_every_name_gets_its_row_its_map_and_its_place_in_the_report(hard, tmp_path):
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
    page = write_prediction_report(read, Darkness(), folder).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == len(hard)
    assert "<b>" not in page
    assert "ros\\xe9.png" in page
    assert "\\x5cx5c" not in page


def test_tables_without_such_names_are_as_they_were(tmp_path):
    path = photo(tmp_path / "Größe.png")
    write_predictions(Darkness(), [path], tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert (row["path"], row["map"], row["problem"]) == (path, "Größe.png", "")


@pytest.mark.parametrize("fault", ["full disk", "folder in the way", "image gone"])
def test_a_heat_map_that_can_not_be_written_leaves_the_scores(tmp_path, monkeypatch, fault):
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
        monkeypatch.setattr(module, "load_image", lambda p, i, **k: load_image(p if p != paths[1] else p + ".gone", i))
    written = write_predictions(Darkness(), paths, folder)
    assert [p.picture for p in written] == ["0.png", None, "2.png", "3.png"]
    assert [bool(p.problem) for p in written] == [False, True, False, False]
    table = rows(folder)
    assert [float(row["score"]) for row in table] == [p.score for p in written]
    assert "'1.png' could not be written" in table[1]["problem"]
    assert not list(folder.glob(".*"))
    page = write_prediction_report(written, Darkness(), folder).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3
    assert "can&#x27;t be shown" in page


def test_the_report_goes_on_without_an_image_that_is_gone(tmp_path):
    paths = [photo(tmp_path / f"{i}.png") for i in range(3)]
    written = write_predictions(Darkness(), paths, tmp_path / "out")
    os.remove(paths[0])
    (tmp_path / "out" / "1.png").unlink()
    page = write_prediction_report(written, Darkness(), tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1
    assert page.count("it can&#x27;t be shown") == 2


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1), (3000, 2000)])
def test_images_of_any_shape_are_shown(tmp_path, size):
    path = photo(tmp_path / "a.png", size=size)
    written = write_predictions(Darkness(), [path], tmp_path / "out")
    page = write_prediction_report(written, Darkness(), tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1


def test_an_earlier_runs_maps_and_report_are_removed_and_nothing_else(tmp_path):
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


def test_a_foreign_report_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("<title>skpatchcore evaluate: parts</title>")
    write_predictions(Darkness(), [photo(tmp_path / "a.png")], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists()


def test_an_image_in_the_output_folder_is_not_overwritten(tmp_path):
    path = photo(tmp_path / "a.png", 7)
    with open(path, "rb") as file:
        before = file.read()
    for _ in range(2):
        (written,) = write_predictions(Darkness(), [path], tmp_path)
        assert written.picture == "a-2.png"
        with open(path, "rb") as file:
            assert file.read() == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_at_the_place_of_a_map_is_replaced_not_followed(tmp_path):
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
def test_images_on_several_windows_drives_get_names(paths, names):
    with mock.patch.object(module, "Path", WindowsPath), mock.patch.object(module.os, "path", ntpath):
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
def test_names_of_maps_are_unique_and_short_for_any_paths(paths):
    names = picture_names(paths, taken=["a.png"])
    assert set(names) == set(paths)
    assert len({name.casefold() for name in names.values()} | {"a.png"}) == len(set(paths)) + 1
    assert all(len(os.fsencode(name)) <= 140 and name == os.path.basename(name) for name in names.values())


def test_a_damaged_table_is_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("path,score\nx,1\n")
    with pytest.raises(ValueError, match="no table of predictions"):
        read_predictions(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "nowhere")
