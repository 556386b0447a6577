"""Which files are complete, and in which order they are judged. The clock is a number."""

from __future__ import annotations

import errno
import os

import pytest

from skpatchcore.watching.arrivals import Arrivals
from skpatchcore.watching.candidates import Place, Search, Version
from skpatchcore.watching.known import KnownVersions


def arrivals_of(folder, *, settle=1.0, marker="", judged=(), capacity=100):
    place = Place(str(folder), marker=marker)
    return place, Arrivals(place, KnownVersions(judged).__contains__, settle, capacity)


def write(path, content=b"x", mtime=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if mtime is not None:
        os.utime(path, ns=(mtime, mtime))
    return path


def taken(arrivals, now, limit=100, n_bytes=10**9):
    return [arrival.version.path for arrival in arrivals.take(now, limit, n_bytes)]


def search(place, is_new=lambda version: True, limit=100, start=""):
    found = Search(place, is_new, limit, start)
    assert found.step()
    return found


def test_file_is_complete_only_after_it_did_not_change_for_the_settle_time(folder):
    _, arrivals = arrivals_of(folder)
    path = write(folder / "a.png")
    arrivals.look("a.png", 10.0)
    assert taken(arrivals, 10.9) == []
    write(path, b"xy")  # changed without an event
    assert taken(arrivals, 11.0) == []  # looks again, and waits again
    assert taken(arrivals, 11.9) == []
    assert taken(arrivals, 12.0) == ["a.png"]


def test_event_of_a_change_starts_the_settle_time_again(folder):
    _, arrivals = arrivals_of(folder)
    arrivals.look(write(folder / "a.png").name, 10.0)
    arrivals.look(write(folder / "a.png", b"xy").name, 10.8)
    assert taken(arrivals, 11.5) == []
    assert taken(arrivals, 11.8) == ["a.png"]


def test_time_of_the_file_does_not_matter_for_completeness(folder):
    _, arrivals = arrivals_of(folder)
    write(folder / "a.png", mtime=0)
    write(folder / "b.png", mtime=2**62)
    for name in ("a.png", "b.png"):
        arrivals.look(name, 10.0)
    assert taken(arrivals, 10.5) == []
    assert taken(arrivals, 11.0) == ["a.png", "b.png"]


def test_without_settle_time_a_file_is_complete_at_once(folder):
    _, arrivals = arrivals_of(folder, settle=0)
    arrivals.look(write(folder / "a.png").name, 10.0)
    assert taken(arrivals, 10.0) == ["a.png"]


def test_files_come_by_completion_then_time_then_name(folder):
    _, arrivals = arrivals_of(folder)
    for name, mtime in (("late.png", 1), ("b.png", 7), ("a.png", 7), ("c.png", 5)):
        write(folder / name, mtime=mtime)
    for name in ("a.png", "b.png", "c.png"):
        arrivals.look(name, 10.0)
    arrivals.look("late.png", 10.1)
    assert taken(arrivals, 20.0) == ["c.png", "a.png", "b.png", "late.png"]


def test_batch_is_limited_by_number_and_by_bytes_but_has_one_file(folder):
    _, arrivals = arrivals_of(folder, settle=0)
    for i in range(5):
        write(folder / f"{i}.png", b"x" * 10, mtime=i)
        arrivals.look(f"{i}.png", 0.0)
    assert taken(arrivals, 0.0, limit=2) == ["0.png", "1.png"]
    assert taken(arrivals, 0.0, n_bytes=1) == ["2.png"]
    assert taken(arrivals, 0.0, n_bytes=20) == ["3.png", "4.png"]


def test_marker_completes_a_file(folder):
    _, arrivals = arrivals_of(folder, marker=".done", settle=5)
    write(folder / "a.png")
    arrivals.look("a.png", 0.0)
    assert len(arrivals) == 0
    write(folder / "a.png.done")
    arrivals.look("a.png.done", 1.0)
    assert taken(arrivals, 1.0) == ["a.png"]


def test_marker_that_is_removed_takes_the_file_back(folder):
    _, arrivals = arrivals_of(folder, marker=".done")
    write(folder / "a.png")
    marker = write(folder / "a.png.done")
    arrivals.look("a.png.done", 1.0)
    marker.unlink()
    assert taken(arrivals, 1.0) == []
    assert len(arrivals) == 0


def test_search_with_markers_finds_only_marked_images(folder):
    place, _ = arrivals_of(folder, marker=".done")
    for name in ("a.png", "a.png.done", "b.png", "c.png.done", "d.txt.done", "d.txt"):
        write(folder / name)
    assert [version.path for version in search(place).found] == ["a.png"]


def test_judged_version_is_not_new_but_a_changed_file_is(folder):
    place, _ = arrivals_of(folder)
    write(folder / "a.png", mtime=5)
    version = place.version_of("a.png")
    _, arrivals = arrivals_of(folder, judged=[version])
    assert not arrivals.is_new(version)
    assert arrivals.is_new(version._replace(size=2))
    assert arrivals.is_new(version._replace(mtime_ns=6))
    arrivals.look("a.png", 0.0)
    assert len(arrivals) == 0


def test_file_that_vanishes_is_counted_and_forgotten(folder):
    _, arrivals = arrivals_of(folder)
    path = write(folder / "a.png")
    arrivals.look("a.png", 0.0)
    path.unlink()
    assert taken(arrivals, 2.0) == []
    assert (len(arrivals), arrivals.n_vanished) == (0, 1)


def test_file_stays_if_the_file_system_does_not_answer(folder, monkeypatch):
    (folder / "a.png").write_bytes(b"1")
    place = Place(str(folder))
    arrivals = Arrivals(place, lambda version: False, 1.0)
    arrivals.look("a.png", 0.0)

    def fails(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as broken:
        broken.setattr(place, "version_of", fails)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            arrivals.take(2.0, 1, 100)
    assert [arrival.version.path for arrival in arrivals.take(2.0, 1, 100)] == ["a.png"]


def test_search_counts_images_without_their_marker(folder):
    for name in ("a.png", "b.png", "b.png.done", "c.txt"):
        (folder / name).write_bytes(b"1")
    search = Search(Place(str(folder), marker=".done"), lambda version: True, 10)
    assert search.step()
    assert (search.n_unmarked, search.n_ignored, len(search.found)) == (1, 1, 1)


def test_postponed_file_waits_for_the_patience_even_if_it_changes(folder):
    _, arrivals = arrivals_of(folder, settle=0)
    path = write(folder / "a.png")
    arrivals.look("a.png", 0.0)
    (arrival,) = arrivals.take(0.0, 1, 10)
    arrivals.postpone(arrival, 1.0, 10.0)
    write(path, b"xyz")
    arrivals.look("a.png", 5.0)
    assert taken(arrivals, 14.9) == []
    (again,) = arrivals.take(15.0, 1, 10)
    assert (again.n_tries, again.version.size) == (1, 3)


def test_more_files_than_the_capacity_are_left_to_a_later_search(folder):
    place, arrivals = arrivals_of(folder, capacity=3, settle=0)
    for i in range(8):
        write(folder / f"{i}.png", mtime=100 - i)
    found = search(place, arrivals.is_new, arrivals.room)
    assert found.is_cut
    assert len(found.found) == 3
    arrivals.offer(found.found, 0.0)
    arrivals.look("7.png", 0.0)
    assert taken(arrivals, 0.0) == ["7.png", "6.png", "5.png"]  # the files that were changed first
    arrivals.look("0.png", 0.0)
    assert arrivals.is_cut  # not before the older files that a search will find


@pytest.mark.parametrize("name", [".hidden.png", "a.png.part", "a.png.tmp", "a.png~", "a.png.partial", "a.txt", "png"])
def test_other_names_are_never_candidates(folder, name):
    place, arrivals = arrivals_of(folder, settle=0)
    write(folder / name)
    arrivals.look(name, 0.0)
    assert taken(arrivals, 0.0) == []
    assert search(place).found == []


def test_only_files_that_are_neither_images_nor_unfinished_are_counted_as_ignored(folder):
    place, _ = arrivals_of(folder)
    for name in ("a.png", "b.PNG", "c.txt", "d.png.part", ".e.png", "sub/f.csv"):
        write(folder / name)
    found = search(place)
    assert [version.path for version in found.found] == ["a.png", "b.PNG"]
    assert found.n_ignored == 2


def test_subfolders_are_searched_except_hidden_and_excluded_ones(folder):
    for name in ("x/y/a.png", ".h/b.png", "out/maps/c.png", "x/out/d.png"):
        write(folder / name)
    place = Place(str(folder), [str(folder / "out")])
    assert {version.path for version in search(place).found} == {
        os.path.join("x", "y", "a.png"),
        os.path.join("x", "out", "d.png"),
    }
    arrivals = Arrivals(place, lambda version: False, 0)
    for name in ("out/maps/c.png", ".h/b.png"):
        arrivals.look(name.replace("/", os.sep), 0.0)
    assert len(arrivals) == 0


def test_links_are_counted_and_not_followed(folder, tmp_path):
    target = write(tmp_path / "other" / "a.png")
    try:
        os.symlink(target, folder / "link.png")
        os.symlink(folder, folder / "loop", target_is_directory=True)
    except OSError:
        pytest.skip("this system has no symbolic links")
    place, arrivals = arrivals_of(folder, settle=0)
    found = search(place)
    assert (found.found, found.n_ignored) == ([], 2)
    assert found.link
    arrivals.look("link.png", 0.0)
    assert len(arrivals) == 0


def test_search_in_slices_finds_the_same_files(folder):
    for i in range(300):
        write(folder / f"{i % 7}" / f"{i}.png")
    place, _ = arrivals_of(folder)
    found = Search(place, lambda version: True, 1000)
    n_steps = 1
    while not found.step(0.0):
        n_steps += 1
        assert n_steps < 1000
    assert n_steps > 1
    assert len({version.path for version in found.found}) == 300


def test_search_raises_if_the_folder_is_missing_but_not_if_a_subfolder_is(folder):
    place, _ = arrivals_of(folder / "missing")
    with pytest.raises(FileNotFoundError):
        search(place)
    place, _ = arrivals_of(folder)
    assert search(place, start="missing").found == []


def test_known_versions_hold_many_versions_after_a_merge():
    known = KnownVersions(Version(f"{i}", 1, 1) for i in range(10))
    for i in range(10, 20_000):
        known.add(Version(f"{i}", 1, 1))
    assert all(Version(f"{i}", 1, 1) in known for i in (0, 9, 10, 16_393, 19_999))
    assert Version("20000", 1, 1) not in known
    assert Version("5", 2, 1) not in known
    recent = Version("19999", 1, 1)
    known.discard(recent)
    assert recent not in known


def test_known_version_is_removed_after_a_merge_too():
    versions = [Version(f"{i}.png", 5, i) for i in range(20_000)]
    known = KnownVersions(versions[:10])
    for version in versions[10:]:
        known.add(version)
    for version in versions[::2]:
        known.discard(version)
    assert [version in known for version in versions] == [False, True] * 10_000
