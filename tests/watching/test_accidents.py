"""A watched folder after accidents: odd times of files, a journal that is removed, drives that come and go."""

from __future__ import annotations

import errno
import math
import os

import pytest

from skpatchcore.detectors import ImageResult
from skpatchcore.watching import JournalError, candidates, judging, moving, recorder, watch
from skpatchcore.watching.candidates import Place
from tests.watching.helpers import check_tables, heartbeat_of, lines_of, names_of, run_once, wait_until, watching
from tests.watching.light import LightDetector, image


class Undecided(LightDetector):
    """A detector without a threshold."""

    def __init__(self):
        super().__init__(offset=math.nan)

    def iter_results(self, X, *, on_error="raise"):
        for result in super().iter_results(X, on_error=on_error):
            if result.error is not None:
                yield result
            else:
                yield ImageResult(result.index, result.image, result.score, math.nan, None, math.nan, None, None)


def test_parts_are_undecided_without_a_threshold(folder, output, tmp_path, capsys):
    (folder / "a.pgm").write_bytes(image(255))
    (folder / "b.pgm").write_bytes(b"")
    run_once(folder, output, Undecided(), move=str(tmp_path / "moved"))
    verdicts = {os.path.basename(line["path"]): line["verdict"] for line in lines_of(output)}
    assert verdicts == {"a.pgm": "undecided", "b.pgm": "unreadable"}
    assert sorted(os.listdir(tmp_path / "moved")) == ["undecided", "unreadable"]
    assert capsys.readouterr().err.count("has no threshold") == 1


@pytest.mark.parametrize("seconds", [13 * 10**9, 10**17])
def test_file_of_a_far_future_is_judged_once(folder, output, monkeypatch, seconds):
    path = folder / "a.pgm"
    path.write_bytes(image())
    later = lambda version: version._replace(mtime_ns=seconds * 10**9)  # noqa: E731
    version_from = candidates.version_from
    monkeypatch.setattr(candidates, "version_from", lambda *arguments: later(version_from(*arguments)))
    monkeypatch.setattr(judging, "version_from", candidates.version_from)
    run_once(folder, output)
    assert run_once(folder, output) == []
    check_tables(output, ["a.pgm"])
    assert lines_of(output)[0]["mtime"] == ("2381-12-14T23:06:40.000Z" if seconds < 10**11 else None)


def test_journal_that_is_removed_is_written_again(folder, output, capsys):
    (folder / "a.pgm").write_bytes(image())
    with watching(folder, output, settle=0):
        wait_until(lambda: names_of(output) == ["a.pgm"])
        for path in output.glob("journal.sqlite*"):
            path.unlink()
        wait_until((output / "journal.sqlite").exists)
        (folder / "b.pgm").write_bytes(image())
        wait_until(lambda: len(names_of(output)) == 2)
        with pytest.raises(JournalError, match="another process"):
            run_once(folder, output)
    assert run_once(folder, output) == []
    check_tables(output, ["a.pgm", "b.pgm"])
    assert "was removed. It was written again" in capsys.readouterr().err


def test_journal_in_whose_place_is_another_file_ends_the_run(folder, output):
    (folder / "a.pgm").write_bytes(image())

    def replace():
        with watching(folder, output):
            wait_until(lambda: names_of(output) == ["a.pgm"])
            (output / "other").write_bytes(b"")
            os.replace(output / "other", output / "journal.sqlite")
            wait_until(lambda: heartbeat_of(output)["state"] == "failed")

    with pytest.raises(JournalError, match="was replaced"):
        replace()


@pytest.mark.parametrize("is_mount_point", [True, False])
def test_file_on_a_drive_that_goes_and_comes_before_the_move_is_judged_once(
    folder, output, tmp_path, monkeypatch, is_mount_point
):
    (folder / "a.pgm").write_bytes(image())
    moved, away = tmp_path / "moved", tmp_path / "away"
    move, n_moves = moving.move, []

    def gone(place, version, *arguments):
        n_moves.append(version)
        if len(n_moves) > 1:  # the drive goes once, so that the run ends
            return move(place, version, *arguments)
        os.rename(folder, away)
        if is_mount_point:
            folder.mkdir()
        try:
            return move(place, version, *arguments)
        finally:
            if is_mount_point:
                folder.rmdir()
            os.rename(away, folder)

    monkeypatch.setattr(recorder, "move", gone)
    run_once(folder, output, move=str(moved))
    monkeypatch.undo()
    assert run_once(folder, output, move=str(moved)) == []
    check_tables(output, ["a.pgm"])
    assert (moved / "normal" / "a.pgm").exists() != is_mount_point


def test_move_keeps_a_file_of_the_same_size_and_time_with_other_content(folder, tmp_path):
    target = tmp_path / "moved" / "a.pgm"
    target.parent.mkdir()
    for path, value in ((folder / "a.pgm", 1), (target, 2)):
        path.write_bytes(image(value))
        os.utime(path, (1000, 1000))
    place = Place(str(folder))
    assert moving.move(place, place.version_of("a.pgm"), str(target)) == str(target.with_name("a-2.pgm"))
    assert (target.read_bytes(), target.with_name("a-2.pgm").read_bytes()) == (image(2), image(1))


def test_free_name_among_many_is_found_with_few_looks(tmp_path, monkeypatch):
    taken = {str(tmp_path / "normal" / ("a.png" if i == 1 else f"a-{i}.png")) for i in range(1, 5001)}
    looks = []
    monkeypatch.setattr(moving.os.path, "lexists", lambda path: looks.append(path) or path in taken)
    assert moving.target_of(str(tmp_path), "normal", "a.png") == str(tmp_path / "normal" / "a-5001.png")
    assert len(looks) < 40


def test_missing_model_is_said_and_is_in_the_heartbeat(folder, output, capsys):
    detector = LightDetector()
    with watching(folder, output, load=lambda path: detector):
        wait_until(lambda: heartbeat_of(output).get("state") == "waiting")
        model = heartbeat_of(output)["model"]["file"]
        os.rename(model, f"{model}.away")
        wait_until(lambda: heartbeat_of(output)["model"]["problem"] == "is missing")
        (folder / "a.pgm").write_bytes(image())
        wait_until(lambda: names_of(output) == ["a.pgm"])
        os.rename(f"{model}.away", model)
        wait_until(lambda: heartbeat_of(output)["model"]["problem"] == "")
    assert capsys.readouterr().err.count("is missing. The earlier model is used.") == 1


def test_files_that_cannot_be_moved_do_not_block_the_others(folder, output, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_N_MOVES", 2)
    for i in range(4):
        (folder / f"{i}.pgm").write_bytes(image())
    move, failing = moving.move, {f"{i}.pgm" for i in range(4)}

    def refused(place, version, target, durable=False):
        if version.path in failing:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return move(place, version, target, durable)

    monkeypatch.setattr(recorder, "move", refused)
    monkeypatch.setattr(watch, "_MOVE_AGAIN", 0.05)
    with watching(folder, output, move=str(tmp_path / "moved")):
        wait_until(lambda: len(names_of(output)) == 4)
        failing -= {"2.pgm", "3.pgm"}
        wait_until(lambda: sorted(path.name for path in folder.iterdir()) == ["0.pgm", "1.pgm"])
        wait_until(lambda: heartbeat_of(output)["counts"]["not_moved"] == 2)
    check_tables(output, [f"{i}.pgm" for i in range(4)])
