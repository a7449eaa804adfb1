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
    """Raise DataError unless every file of the data set, and what is said of it, still make up its data id."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    made = data_id(meta["files"], meta["max_seq_len"], meta["eval_tokens"])
    if made != meta["data_id"]:
        raise DataError(f"data: expected {folder} to be data id {meta['data_id']}, found {made}; prepare it again")
    for name, digest in meta["files"].items():
        path = folder / name
        found = sha256(path) if path.is_file() else "nothing"
        if found != digest:
            raise DataError(f"data: expected {path} with sha256 {digest[:12]}…, found {found[:12]}; prepare it again")


def data_id(hashes: dict[str, str], max_seq_len: int, eval_tokens: int) -> str:
    """12 hex digits over the files' SHA-256, sequence length and evaluation tokens: results compare within one."""
    content = [sorted(hashes.items()), max_seq_len, eval_tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


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
