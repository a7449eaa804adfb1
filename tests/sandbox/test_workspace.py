from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sandbox.workspace import make_workspace, remove_workspace, write_aside


def test_write_aside_writes_text_and_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_aside(path, "größe\r\n")
    assert path.read_bytes() == "größe\r\n".encode()
    write_aside(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_write_aside_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_aside(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_aside(path, "\ud800")
    with pytest.raises(FileNotFoundError):
        write_aside(tmp_path / "missing" / "metrics.json", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_aside(tmp_path / "folder", "new")
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "metrics.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    texts = {letter * 300_000 for letter in "ab"}
    write_aside(path, "a" * 300_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for text in sorted(texts):
                write_aside(path, text)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(path.read_text())
    writer.join()
    assert seen
    assert set(seen) <= texts


def test_a_workspace_has_its_files_as_given(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "runs" / "1", {"train.py": "a = 1\r\n", "data/x.txt": "größe"})
    assert folder == (tmp_path / "runs" / "1").resolve()
    assert (folder / "train.py").read_bytes() == b"a = 1\r\n"
    assert (folder / "data" / "x.txt").read_text(encoding="utf-8") == "größe"


def test_a_workspace_is_fresh(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "new", {})
    assert make_workspace(folder, {"train.py": ""}) == folder
    with pytest.raises(FileExistsError, match="new or empty folder"):
        make_workspace(folder, {"train.py": ""})


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "..", "a//b", "a/", "./a", "a\\b", "a\0b"])
def test_a_name_that_leaves_the_workspace_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        make_workspace(tmp_path / "new", {"good.py": "", name: ""})
    assert list(tmp_path.iterdir()) == []


def test_removing_ends_with_nothing_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    folder = make_workspace(tmp_path / "new", {"a/b/c.txt": "x", "train.py": ""})
    (folder / "link").symlink_to(outside)
    (folder / "a" / "loop").symlink_to(folder)
    os.mkfifo(folder / "fifo")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0o500)
    remove_workspace(folder)
    assert not folder.exists()
    assert (outside / "precious").read_text() == "kept"
    remove_workspace(folder)  # again: nothing to do


def test_a_link_is_not_a_workspace(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "new", {"train.py": ""})
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(ValueError, match="found a link"):
        remove_workspace(link)
    assert (folder / "train.py").exists()
