"""Files another process may read: written whole or not at all. Folders a command runs in: made fresh, removed whole."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


def write_aside(path: Path, content: str | bytes) -> None:
    """Replace `path` in one step: a reader sees the old file or the new one, also after a power cut."""
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_workspace(folder: Path, files: Mapping[str, str]) -> Path:
    """Make `folder` with `files` (relative POSIX path → text) and return its absolute path.

    It may exist if it is empty. Text is written as it is: UTF-8, line ends untouched.
    """
    for name in files:
        _refuse_outside(name)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"expected a new or empty folder, found files in {folder}; remove it or choose another")
    for name, text in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode())
    return folder.resolve()


def _refuse_outside(name: str) -> None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or PurePosixPath(name).drive:
        raise ValueError(f"expected a plain relative path below the workspace, found {name!r}")


def remove_workspace(folder: Path) -> None:
    """Remove `folder` and everything in it, also what was made unreadable; links are removed, never followed."""
    if folder.is_symlink():
        raise ValueError(f"expected a folder, found a link at {folder}; remove it by hand")
    if not folder.exists():
        return
    _make_writable(folder)
    for root, names, _ in os.walk(folder):
        for name in names:
            _make_writable(Path(root) / name)
    shutil.rmtree(folder)


def _make_writable(folder: Path) -> None:
    if not folder.is_symlink():
        folder.chmod(stat.S_IRWXU)
