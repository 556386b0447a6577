"""Files that are replaced in one step, and what they keep of the old ones."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from skpatchcore._utils.files import require_writable, require_writable_folder, written_whole

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


def write(path, text="new"):
    with written_whole(Path(path)) as partial:
        partial.write_text(text)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@needs_links
def test_links_stay_and_their_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "v1"
    target.write_text("old")
    (tmp_path / "middle").symlink_to("there/v1")
    (tmp_path / "current").symlink_to("middle")
    write(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert target.read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["current", "middle", "there", "v1"]


@needs_links
def test_a_link_to_nothing_gets_its_target(tmp_path):
    (tmp_path / "current").symlink_to("later")
    write(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "later").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions there")
@pytest.mark.parametrize("mode", [0o664, 0o600, 0o640, 0o666])
def test_permissions_of_the_old_file_stay(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    seen = []
    with written_whole(path) as partial:
        seen.append(mode_of(partial))
        partial.write_text("new")
    assert seen == [0o600]  # before it is whole, nobody else reads it
    assert (mode_of(path), path.read_text()) == (mode, "new")


@pytest.mark.skipif(os.name == "nt", reason="there is no umask there")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_permissions_of_the_process(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o666 & ~mask


def test_another_hard_link_keeps_the_old_content(tmp_path):
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


def test_long_names_can_be_written(tmp_path):
    name = "x" * 250
    write(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="regular"):
            write(tmp_path / "pipe")
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_may_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda target, mode: Path(target) != path)
    for refused in (write, require_writable):
        with pytest.raises(PermissionError):
            refused(path)
    assert path.read_text() == "old"


def test_a_folder_that_can_not_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    require_writable_folder(tmp_path / "not" / "yet")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError):
        require_writable_folder(tmp_path / "file" / "below")
    with pytest.raises(FileNotFoundError):
        require_writable(tmp_path / "nowhere" / "model.skops")

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        require_writable_folder(tmp_path / "not" / "yet")
    assert caught.value.filename == str(tmp_path)
