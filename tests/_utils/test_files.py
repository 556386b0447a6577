"""Tests of atomic writes: links, permissions and hard links of the old file, and checks before writing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from skpatchcore._utils.files import require_writable, require_writable_folder, written_whole

needs_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")


def write(path, text="new"):
    with written_whole(Path(path)) as partial:
        partial.write_text(text)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@needs_links
def test_written_whole_keeps_links_and_replaces_their_target(tmp_path):
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
def test_written_whole_creates_the_target_of_a_dangling_link(tmp_path):
    (tmp_path / "current").symlink_to("later")
    write(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "later").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mode", [0o664, 0o600, 0o640, 0o666])
def test_written_whole_keeps_the_permissions_of_the_old_file(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    seen = []
    with written_whole(path) as partial:
        seen.append(mode_of(partial))
        partial.write_text("new")
    assert seen == [0o600]  # other users cannot read the incomplete file
    assert (mode_of(path), path.read_text()) == (mode, "new")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_written_whole_gives_new_files_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o666 & ~mask


def test_written_whole_leaves_other_hard_links_unchanged(tmp_path):
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")


def test_written_whole_accepts_names_of_250_characters(tmp_path):
    name = "x" * 250
    write(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_written_whole_refuses_directories_and_pipes(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="regular"):
            write(tmp_path / "pipe")
    assert not list(tmp_path.glob(".*"))


def test_written_whole_and_require_writable_refuse_a_read_only_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda target, mode: Path(target) != path)
    for refused in (write, require_writable):
        with pytest.raises(PermissionError):
            refused(path)
    assert path.read_text() == "old"


def test_require_writable_refuses_missing_and_read_only_folders(tmp_path, monkeypatch):
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
