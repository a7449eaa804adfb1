"""Where prepared data lies, and which set a run uses when nobody names one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from corpus.errors import DataError


def cache() -> Path:
    """OVERNIGHT_CACHE, else ~/.cache/overnight."""
    return Path(os.environ.get("OVERNIGHT_CACHE") or Path.home() / ".cache" / "overnight")


def verify(folder: Path) -> None:
    """Raise DataError unless every file of the data set is still what it was when it was made."""
    known = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["files"]
    for name, digest in known.items():
        path = folder / name
        found = sha256(path) if path.is_file() else "nothing"
        if found != digest:
            raise DataError(f"data: expected {path} with sha256 {digest[:12]}…, found {found[:12]}; prepare it again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_folder(named: str | None = None) -> Path:
    """The folder of a finished data set: the one named, else the one prepared last. Raise DataError if it is none."""
    pointer = cache() / "current"
    if named is None and not pointer.is_file():
        raise DataError(f"data: expected a prepared set under {cache()}, found none; run `python prepare.py` first")
    folder = Path(named) if named else cache() / "data" / pointer.read_text(encoding="utf-8").strip()
    if not (folder / "meta.json").is_file():
        raise DataError(f"data: expected a prepared set in {folder}, found none; run `python prepare.py` first")
    return folder.resolve()
