"""A watched folder with a light detector: judged files, written results, and failures."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time

import pytest

from skpatchcore.reports import read_predictions
from skpatchcore.watching import JournalError, WatchSettings, judging, moving, storing, tables
from skpatchcore.watching import wakeups as events
from skpatchcore.watching.arrivals import Arrivals
from skpatchcore.watching.candidates import Place
from skpatchcore.watching.discovery import Discovery
from skpatchcore.watching.notices import Notices
from skpatchcore.watching.watch import check_folders
from tests.watching.helpers import (
    check_tables,
    heartbeat_of,
    lines_of,
    model_file,
    names_of,
    rows_of,
    run_once,
    wait_until,
    watching,
)
from tests.watching.light import LightDetector, image


def test_once_judges_all_images_and_writes_both_tables(folder, output):
    (folder / "sub").mkdir()
    for name, value in (("a.pgm", 0), ("b.pgm", 255), ("sub/c.pgm", 3)):
        (folder / name).write_bytes(image(value))
    (folder / "notes.txt").touch()
    found = run_once(folder, output)
    check_tables(output, ["a.pgm", "b.pgm", "c.pgm"])
    assert {os.path.basename(p.path): p.label for p in found} == {"a.pgm": 1, "b.pgm": -1, "c.pgm": 1}
    assert read_predictions(output) == [
        p._replace(inspected=q.inspected) for p, q in zip(found, read_predictions(output), strict=True)
    ]
    heartbeat = heartbeat_of(output)
    assert heartbeat["state"] == "stopped"
    assert heartbeat["counts"]["judged"] == 3
    assert heartbeat["counts"]["ignored"] == 1
    assert [row["time"][-1] for row in rows_of(output)] == ["Z"] * 3
    assert len({row["model"] for row in rows_of(output)}) == 1
    assert {line["verdict"] for line in lines_of(output)} == {"normal", "anomalous"}


def test_second_run_judges_only_what_is_new_or_has_changed(folder, output):
    for i in range(3):
        (folder / f"{i}.pgm").write_bytes(image(i))
    run_once(folder, output)
    assert run_once(folder, output) == []
    (folder / "1.pgm").write_bytes(image(1, side=9))
    (folder / "new.pgm").write_bytes(image(1))
    run_once(folder, output)
    check_tables(output, ["0.pgm", "1.pgm", "2.pgm", "1.pgm", "new.pgm"])


def test_odd_names_are_judged_and_read_back(folder, output):
    names = ["a,b.pgm", 'quote".pgm', "new\nline.pgm", "\udce9.pgm", "\\xe9.pgm", "ü 日本.pgm"]
    for name in names:
        try:
            (folder / name).write_bytes(image())
        except OSError:
            pytest.skip("the file system refuses such names")
    run_once(folder, output)
    assert {p.path for p in read_predictions(output)} == {str(folder / name) for name in names}
    assert len(lines_of(output)) == len(names)
    assert run_once(folder, output) == []


def test_file_that_is_written_slowly_is_judged_once_and_whole(folder, output):
    content = image(255, side=40)
    with watching(folder, output, settle=0.5):
        with (folder / "a.pgm").open("wb") as file:
            for start in range(0, len(content), 200):  # pauses shorter than the settle time
                file.write(content[start : start + 200])
                file.flush()
                time.sleep(0.02)
        wait_until(lambda: names_of(output))
    check_tables(output, ["a.pgm"])
    assert rows_of(output)[0]["score"] == "-1.0"


def test_file_with_a_pause_longer_than_the_settle_time_is_judged_when_it_is_whole(folder, output):
    content = image(255, side=40)
    detector = LightDetector()
    with watching(folder, output, detector, patience=0.5):
        path = folder / "a.pgm"
        path.write_bytes(content[:300])
        wait_until(lambda: any("a.pgm" in str(batch) for batch in detector.batches))  # tried too early
        path.write_bytes(content)
        wait_until(lambda: names_of(output))
    check_tables(output, ["a.pgm"])
    assert rows_of(output)[0]["score"] == "-1.0"


def test_file_that_is_renamed_into_place_is_judged_at_once(folder, output):
    with watching(folder, output, settle=0):
        (folder / "a.pgm.tmp").write_bytes(b"unfinished")
        (folder / "b.pgm.tmp").write_bytes(image())
        os.rename(folder / "b.pgm.tmp", folder / "b.pgm")
        wait_until(lambda: names_of(output))
    check_tables(output, ["b.pgm"])


def test_done_marker_completes_and_stays_unless_files_are_moved(folder, output, tmp_path):
    (folder / "a.pgm").write_bytes(image())
    (folder / "b.pgm").write_bytes(image())
    (folder / "a.pgm.done").touch()
    run_once(folder, output, done_marker=".done")
    check_tables(output, ["a.pgm"])
    assert (folder / "a.pgm.done").exists()
    (folder / "b.pgm.done").touch()
    run_once(folder, output, done_marker=".done", move=str(tmp_path / "moved"))
    assert not (folder / "b.pgm.done").exists()
    assert not (folder / "b.pgm").exists()
    assert (tmp_path / "moved" / "normal" / "b.pgm").exists()


def test_unreadable_file_is_flagged_after_it_was_tried_again(folder, output):
    (folder / "bad.pgm").write_bytes(b"no image")
    (folder / "good.pgm").write_bytes(image())
    detector = LightDetector()
    run_once(folder, output, detector)
    check_tables(output, ["good.pgm", "bad.pgm"])
    row = next(row for row in rows_of(output) if row["path"].endswith("bad.pgm"))
    assert (row["score"], row["label"], row["map"]) == ("nan", "-1", "")
    assert "not an image" in row["problem"]
    tried = [path for batch in detector.batches for path in batch if path.endswith("bad.pgm")]
    assert len(tried) == 2
    line = next(line for line in lines_of(output) if line["verdict"] == "unreadable")
    assert (line["score"], line["label"]) == (None, -1)
    assert heartbeat_of(output)["counts"]["unreadable"] == 1


def test_file_that_changes_while_it_is_read_is_not_judged_as_it_was(folder, output, monkeypatch):
    path = folder / "a.pgm"
    path.write_bytes(image(0))
    opened, n_opened = judging.opened, []

    def changing(name, index):
        if not n_opened:
            path.write_bytes(image(255))  # of the same size
        n_opened.append(name)
        return opened(name, index)

    monkeypatch.setattr(judging, "opened", changing)
    run_once(folder, output)
    check_tables(output, ["a.pgm"])
    assert rows_of(output)[0]["score"] == "-1.0"


def test_detector_that_fails_on_one_file_flags_only_this_file(folder, output):
    class Failing(LightDetector):
        def iter_results(self, X, *, on_error="raise"):
            if any(path.endswith("odd.pgm") for path in X):
                raise RuntimeError("unexpected")
            return super().iter_results(X)

    for name in ("a.pgm", "odd.pgm", "z.pgm"):
        (folder / name).write_bytes(image())
    run_once(folder, output, Failing())
    check_tables(output, ["a.pgm", "z.pgm", "odd.pgm"])
    assert rows_of(output)[-1]["problem"] == "RuntimeError: unexpected"


def test_detector_that_fails_on_all_files_ends_the_run_and_flags_nothing(folder, output):
    class Failing(LightDetector):
        def iter_results(self, X, *, on_error="raise"):
            if X[0].endswith("image.png"):  # of the start
                return iter(())
            raise RuntimeError("no memory on the device")

    for i in range(8):
        (folder / f"{i}.pgm").write_bytes(image())
    with pytest.raises(RuntimeError, match="no memory"):
        run_once(folder, output, Failing())
    assert rows_of(output) == []
    assert heartbeat_of(output)["state"] == "failed"
    run_once(folder, output)
    assert len(rows_of(output)) == 8


def test_files_are_judged_in_order_and_in_batches(folder, output):
    for i in range(10):
        (folder / f"{i}.pgm").write_bytes(image())
        os.utime(folder / f"{i}.pgm", ns=(10**9 * (20 - i), 10**9 * (20 - i)))
    detector = LightDetector()
    run_once(folder, output, detector, batch=3)
    assert names_of(output) == [f"{i}.pgm" for i in range(9, -1, -1)]
    assert [len(batch) for batch in detector.batches[1:]] == [3, 3, 3, 1]


def test_output_and_moved_files_inside_the_folder_are_not_judged(folder):
    for i in range(3):
        (folder / f"{i}.pgm").write_bytes(image(255 * (i == 1)))
    output, moved = folder / "out", folder / "moved"
    run_once(folder, output, LightDetector(maps=True), move=str(moved), maps="all")
    run_once(folder, output, LightDetector(maps=True), move=str(moved), maps="all")
    assert len(rows_of(output)) == 3
    assert sorted(path.name for path in moved.rglob("*.pgm")) == ["0.pgm", "1.pgm", "2.pgm"]
    assert (moved / "anomalous" / "1.pgm").exists()


def test_moved_file_never_replaces_another_one(folder, output, tmp_path):
    moved = tmp_path / "moved"
    for side in (8, 9, 10):
        (folder / "x").mkdir(exist_ok=True)
        (folder / "x" / "a.pgm").write_bytes(image(side, side))
        run_once(folder, output, move=str(moved))
    names = ["a-2.pgm", "a-3.pgm", "a.pgm"]
    assert sorted(os.listdir(moved / "normal" / "x")) == names
    assert len({(moved / "normal" / "x" / name).read_bytes() for name in names}) == 3
    assert [os.path.basename(line["moved_to"]) for line in lines_of(output)] == ["a.pgm", "a-2.pgm", "a-3.pgm"]


def test_file_that_is_put_back_after_it_was_moved_is_judged_again(folder, output, tmp_path):
    (folder / "a.pgm").write_bytes(image())
    run_once(folder, output, move=str(tmp_path / "moved"))
    os.rename(tmp_path / "moved" / "normal" / "a.pgm", folder / "a.pgm")
    run_once(folder, output, move=str(tmp_path / "moved"))
    check_tables(output, ["a.pgm", "a.pgm"])


def test_move_to_another_file_system_copies_first(folder, output, tmp_path, monkeypatch):
    rename = os.rename

    def across(source, target):
        if os.path.dirname(source) == str(folder):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(moving.os, "rename", across)
    (folder / "a.pgm").write_bytes(image(3))
    run_once(folder, output, move=str(tmp_path / "moved"))
    assert (tmp_path / "moved" / "normal" / "a.pgm").read_bytes() == image(3)
    assert os.listdir(folder) == []
    assert os.listdir(tmp_path / "moved" / "normal") == ["a.pgm"]


def test_file_that_cannot_be_moved_stays_and_is_moved_by_a_later_run(folder, output, tmp_path, monkeypatch, capsys):
    (folder / "a.pgm").write_bytes(image())

    def refused(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(moving.os, "rename", refused)
    run_once(folder, output, move=str(tmp_path / "moved"))
    assert "cannot be moved: Permission denied" in capsys.readouterr().err
    assert heartbeat_of(output)["counts"]["not_moved"] == 1
    monkeypatch.undo()
    run_once(folder, output)
    assert (tmp_path / "moved" / "normal" / "a.pgm").exists()
    check_tables(output, ["a.pgm"])


@pytest.mark.parametrize("has_third", [False, True])
def test_new_version_that_comes_before_the_move_is_not_moved_as_judged(
    folder, output, tmp_path, monkeypatch, has_third
):
    path = folder / "a.pgm"
    path.write_bytes(image(0))
    rename, n_moves = os.rename, []

    def late(source, target):
        if not n_moves:
            path.write_bytes(image(255, side=9))
        n_moves.append(source)
        rename(source, target)
        if has_third and len(n_moves) == 1:
            path.write_bytes(image(255, side=10))

    monkeypatch.setattr(moving.os, "rename", late)
    run_once(folder, output, move=str(tmp_path / "moved"))
    check_tables(output, ["a.pgm", "a.pgm", "a-2.pgm"] if has_third else ["a.pgm", "a.pgm"])
    assert sorted(os.listdir(tmp_path / "moved" / "anomalous")) == (["a-2.pgm", "a.pgm"] if has_third else ["a.pgm"])
    assert os.listdir(tmp_path / "moved" / "normal") == []


@pytest.mark.parametrize(("maps", "n_maps"), [("all", 2), ("anomalous", 1), ("none", 0)])
def test_maps_option_selects_the_heat_maps(folder, output, maps, n_maps):
    (folder / "a.pgm").write_bytes(image(0, 32))
    (folder / "b.pgm").write_bytes(image(255, 32))
    run_once(folder, output, LightDetector(maps=True), maps=maps)
    listed = [row["map"] for row in rows_of(output) if row["map"]]
    assert len(listed) == n_maps
    assert all((output / name).is_file() for name in listed)
    if maps != "none":
        assert [line["n_regions"] for line in lines_of(output)] == [0, 1]


def test_map_of_an_earlier_version_is_kept(folder, output):
    for side in (32, 33):
        (folder / "a.pgm").write_bytes(image(255, side))
        run_once(folder, output, LightDetector(maps=True))
    names = [row["map"] for row in rows_of(output)]
    assert len(set(names)) == 2
    assert all((output / name).is_file() for name in names)


def test_map_without_a_row_and_temporary_files_are_removed_at_the_start(folder, output):
    (folder / "a.pgm").write_bytes(image(255, 32))
    run_once(folder, output, LightDetector(maps=True))
    kept = output / rows_of(output)[0]["map"]
    left = kept.with_name(kept.name.replace("-1.png", "-2.png"))
    for path in (left, output / ".heartbeat.json.7-7.partial", kept.with_name("users.png")):
        path.write_bytes(b"x")
    run_once(folder, output)
    assert sorted(os.listdir(output / "maps")) == sorted([kept.name, "users.png"])
    assert not (output / ".heartbeat.json.7-7.partial").exists()


def fail_while(monkeypatch, module, name, is_full, code=errno.ENOSPC):
    """Let a function of a module raise an error of the disk while the event is set."""
    function = getattr(module, name)

    def failing(*arguments, **keywords):
        if is_full.is_set():
            raise OSError(code, os.strerror(code))
        return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("place", ["table", "map"])
def test_full_disk_stops_judging_and_loses_nothing(folder, output, monkeypatch, capsys, place):
    is_full = threading.Event()
    if place == "table":
        fail_while(monkeypatch, tables.os, "write", is_full)
    else:
        from skpatchcore.reports import heat_maps

        fail_while(monkeypatch, heat_maps, "_write_overlay", is_full)
    monkeypatch.setattr(storing, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storing.Storing.__init__, "__defaults__", (0.01,))
    names = [f"{i}.pgm" for i in range(6)]
    with watching(folder, output, LightDetector(maps=True), maps="all"):
        (folder / names[0]).write_bytes(image(0, 32))
        wait_until(lambda: names_of(output))
        is_full.set()
        for name in names[1:]:
            (folder / name).write_bytes(image(0, 32))
        wait_until(lambda: heartbeat_of(output).get("state") == "disk full")
        time.sleep(0.1)
        assert names_of(output) == names[:1]
        is_full.clear()
        wait_until(lambda: len(names_of(output)) == len(names))
    check_tables(output, names)
    said = capsys.readouterr().err
    assert said.count("No file is judged") == 1
    assert said.count("writing works again") == 1


def test_stop_on_a_full_disk_leaves_the_file_to_the_next_run(folder, output, monkeypatch):
    is_full = threading.Event()
    fail_while(monkeypatch, tables.os, "write", is_full)
    for i in range(3):
        (folder / f"{i}.pgm").write_bytes(image())
    with watching(folder, output):
        wait_until(lambda: len(names_of(output)) == 3)
        is_full.set()
        (folder / "3.pgm").write_bytes(image())
        wait_until(lambda: heartbeat_of(output).get("state") == "disk full")
    monkeypatch.undo()
    run_once(folder, output)
    check_tables(output, [f"{i}.pgm" for i in range(4)])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a file system")
def test_small_file_system_that_is_full(folder, tmp_path, monkeypatch):
    import subprocess

    output = tmp_path / "small"
    output.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", output], check=False).returncode:
        pytest.skip("this container cannot mount a file system")
    try:
        monkeypatch.setattr(storing.Storing.__init__, "__defaults__", (0.01,))
        monkeypatch.setattr(storing, "_LONGEST_PAUSE", 0.05)
        names = [f"{i:03d}.pgm" for i in range(60)]
        with watching(folder, output):
            wait_until(lambda: heartbeat_of(output).get("state") == "waiting")
            (output / "filler").write_bytes(b"")
            with (output / "filler").open("ab", buffering=0) as file:
                try:
                    for _ in range(10_000):
                        file.write(b"x" * 1024)
                except OSError:
                    pass
            for name in names:
                (folder / name).write_bytes(image())
            time.sleep(1.0)
            n_before = len(names_of(output))
            (output / "filler").unlink()
            wait_until(lambda: len(names_of(output)) == len(names))
            assert n_before < len(names)
        check_tables(output, names)
    finally:
        subprocess.run(["umount", output], check=True)


def test_rotated_table_goes_on_in_a_new_file(folder, output):
    with watching(folder, output):
        (folder / "a.pgm").write_bytes(image())
        wait_until(lambda: names_of(output) == ["a.pgm"])
        os.rename(output / "scores.csv", output / "scores.csv.1")
        (folder / "b.pgm").write_bytes(image())
        wait_until(lambda: names_of(output) == ["b.pgm"])


def test_table_of_predict_is_kept_under_another_name(folder, output):
    output.mkdir()
    (output / "scores.csv").write_text("path,score\nx,1\n")
    (folder / "a.pgm").write_bytes(image())
    run_once(folder, output)
    assert names_of(output) == ["a.pgm"]
    assert (output / "scores-1.csv").read_text() == "path,score\nx,1\n"


def test_second_watch_with_the_same_output_is_refused(folder, output):
    with watching(folder, output):
        wait_until(lambda: heartbeat_of(output).get("state") == "waiting")
        with pytest.raises(JournalError, match="another process"):
            run_once(folder, output)


def test_vanished_folder_is_waited_for(folder, output, monkeypatch, capsys):
    from skpatchcore.watching import discovery

    monkeypatch.setattr(discovery, "_FIRST_TRY", 0.02)
    with watching(folder, output):
        (folder / "a.pgm").write_bytes(image())
        wait_until(lambda: names_of(output))
        os.rename(folder, folder.with_name("away"))
        wait_until(lambda: heartbeat_of(output).get("state") == "folder missing")
        os.rename(folder.with_name("away"), folder)
        (folder / "b.pgm").write_bytes(image())
        wait_until(lambda: len(names_of(output)) == 2)
    check_tables(output, ["a.pgm", "b.pgm"])
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "is there again" in said


def test_replaced_model_is_loaded_between_images(folder, output, capsys):
    n_loads = []

    def load(path):
        n_loads.append(path)
        if len(n_loads) == 2:
            raise ValueError("damaged")
        return LightDetector(offset=-0.5 if len(n_loads) == 1 else -2.0)

    model = model_file(output)
    with watching(folder, output, load=load):
        (folder / "a.pgm").write_bytes(image(255))
        wait_until(lambda: len(names_of(output)) == 1)
        model.write_bytes(b"damaged model")
        wait_until(lambda: len(n_loads) == 2)
        (folder / "b.pgm").write_bytes(image(255))
        wait_until(lambda: len(names_of(output)) == 2)
        wait_until(lambda: heartbeat_of(output)["model"]["problem"] == "damaged")
        model.write_bytes(b"another model")
        wait_until(lambda: len(n_loads) == 3)
        (folder / "c.pgm").write_bytes(image(255))
        wait_until(lambda: len(names_of(output)) == 3)
    rows = rows_of(output)
    assert [row["label"] for row in rows] == ["-1", "-1", "1"]
    assert rows[0]["model"] == rows[1]["model"] != rows[2]["model"]
    said = capsys.readouterr().err
    assert "The earlier model is used" in said
    assert "was loaded again" in said


def test_backlog_larger_than_the_capacity_is_judged_completely(folder, output, monkeypatch):
    from skpatchcore.watching import arrivals, discovery

    monkeypatch.setattr(arrivals.Arrivals.__init__, "__defaults__", (16,))
    monkeypatch.setattr(discovery, "CAPACITY", 16)
    names = [f"{i:03d}.pgm" for i in range(100)]
    for name in names:
        (folder / name).write_bytes(image())
        os.utime(folder / name, ns=(10**9, 10**9))
    run_once(folder, output, settle=0)
    check_tables(output, names)
    assert names_of(output) == names


@pytest.mark.skipif(not events.Listener.is_available(), reason="watchfiles is not installed")
def test_events_find_files_in_new_subfolders(folder, output):
    with watching(folder, output, poll=None, rescan=3600.0):
        wait_until(lambda: heartbeat_of(output).get("state") == "waiting")
        (folder / "a.pgm").write_bytes(image())
        (folder / "x" / "y").mkdir(parents=True)
        (folder / "x" / "y" / "b.pgm").write_bytes(image())
        wait_until(lambda: len(names_of(output)) == 2)
        (folder / "\udce9.pgm").write_bytes(image())
        (folder / "x" / "c.pgm.tmp").write_bytes(image())
        os.rename(folder / "x" / "c.pgm.tmp", folder / "x" / "c.pgm")
        wait_until(lambda: len(names_of(output)) == 4)
    assert len(rows_of(output)) == 4


def test_watch_without_watchfiles_says_that_it_searches(folder, output, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    (folder / "a.pgm").write_bytes(image())
    run_once(folder, output, poll=None)
    assert "watchfiles is not installed" in capsys.readouterr().err


def test_failed_events_are_replaced_by_searches(folder, output, monkeypatch, capsys):
    from skpatchcore.watching import discovery

    monkeypatch.setattr(discovery, "_POLL", 0.05)
    monkeypatch.setattr(events.Listener, "is_available", staticmethod(lambda: True))

    def fail(self):
        self._wakeups.failure = "OS file watch limit reached."
        self._wakeups.wake()

    monkeypatch.setattr(events.Listener, "_run", fail)
    with watching(folder, output, poll=None):
        (folder / "a.pgm").write_bytes(image())
        wait_until(lambda: names_of(output))
    assert "file watch limit reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"settle": -1},
        {"patience": float("nan")},
        {"poll": 0},
        {"batch": 0},
        {"queue": 0},
        {"maps": "some"},
        {"done_marker": ".png"},
        {"done_marker": "a/b"},
        {"webhook": "ftp://user:secret@host"},
        {"webhook": "https://"},
        {"webhook": "http://user:secret@host:port/"},
        {"webhook_all": True},
        {"exec": ""},
        {"exec": "a 'b"},
    ],
)
def test_unsuitable_option_raises_without_a_password_in_the_message(options):
    with pytest.raises(ValueError, match=r"\w") as caught:
        WatchSettings(**options)
    assert "secret" not in str(caught.value)


def test_folders_inside_each_other_are_refused(folder, tmp_path):
    for output, move in ((folder, None), (tmp_path, None), (tmp_path / "out", tmp_path)):
        with pytest.raises(ValueError, match="lies in"):
            check_folders(str(folder), str(output), None if move is None else str(move))
    with pytest.raises(NotADirectoryError):
        check_folders(str(folder / "missing"), str(tmp_path / "out"), None)


def test_heartbeat_that_cannot_be_written_does_not_stop_the_run(folder, output):
    (output / "heartbeat.json").mkdir(parents=True)
    (folder / "a.pgm").write_bytes(image())
    run_once(folder, output)
    check_tables(output, ["a.pgm"])


def test_long_name_gets_a_heat_map(folder, output):
    (folder / f"{'ü' * 110}.pgm").write_bytes(image(255, 32))
    run_once(folder, output, LightDetector(maps=True))
    (row,) = rows_of(output)
    assert len(os.fsencode(os.path.basename(row["map"]))) <= 143  # the limit of encrypted file systems
    assert (output / row["map"]).is_file()


def test_fsync_waits_for_the_map_the_journal_and_the_tables(folder, output, monkeypatch):
    flushed, fsync = [], os.fsync

    def record(descriptor):
        if sys.platform == "linux":
            flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    (folder / "a.pgm").write_bytes(image(255, 32))
    run_once(folder, output, LightDetector(maps=True), fsync=True)
    check_tables(output, ["a.pgm"])
    if sys.platform == "linux":
        assert {"scores.csv", "scores.jsonl", "maps", os.path.basename(rows_of(output)[0]["map"])} <= set(flushed)


@pytest.mark.parametrize("is_gone", [False, True])
def test_move_of_a_file_that_has_changed_or_is_gone_does_nothing(folder, tmp_path, is_gone):
    path, target = folder / "a.pgm", tmp_path / "moved" / "normal" / "a.pgm"
    path.write_bytes(image())
    place = Place(str(folder))
    version = place.version_of("a.pgm")
    path.unlink() if is_gone else path.write_bytes(image(side=9))
    assert moving.move(place, version, str(target)) is None
    assert path.exists() != is_gone
    assert not target.exists()


def test_move_that_was_interrupted_after_the_copy_is_completed(folder, tmp_path):
    path, target = folder / "a.pgm", tmp_path / "moved" / "a.pgm"
    path.write_bytes(image(3))
    place = Place(str(folder))
    target.parent.mkdir()
    shutil.copy2(path, target)
    assert moving.move(place, place.version_of("a.pgm"), str(target)) == str(target)
    assert os.listdir(target.parent) == ["a.pgm"]
    assert not path.exists()


def test_event_of_a_folder_searches_the_folder(folder):
    place, events_of, notices = Place(str(folder)), events.Wakeups(), Notices()
    arrivals = Arrivals(place, lambda version: False, 0.0)
    discovery = Discovery(place, arrivals, events_of, poll=3600.0, rescan=3600.0, notices=notices)
    discovery.turn(1.0)
    assert discovery.n_found == 0
    (folder / "x" / "y").mkdir(parents=True)
    (folder / "x" / "y" / "a.pgm").write_bytes(image())
    discovery.turn(2.0)
    assert len(arrivals) == 0  # no event
    events_of.add([os.path.join(os.path.realpath(folder), "x")])
    discovery.turn(3.0)
    assert len(arrivals) == 1


def test_event_of_a_name_that_is_not_valid_searches_everything(folder):
    place, events_of, notices = Place(str(folder)), events.Wakeups(), Notices()
    arrivals = Arrivals(place, lambda version: False, 0.0)
    discovery = Discovery(place, arrivals, events_of, poll=3600.0, rescan=3600.0, notices=notices)
    discovery.turn(1.0)
    (folder / "a.pgm").write_bytes(image())
    events_of.add([os.path.join(os.path.realpath(folder), "\ufffd.pgm")])
    discovery.turn(2.0)
    assert len(arrivals) == 1
