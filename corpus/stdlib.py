"""The embedded default: the Python standard library of the running interpreter, about 11 MB of text, no network needed.

Splits are made of whole files, so no function of a training module is ever asked for in evaluation. Which file goes
where depends on content and path only: the same Python release gives the same data on every machine.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from corpus.documents import python_chunks
from corpus.errors import DataError
from corpus.source import Shard, Source

LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
EVAL_SHARE = 0.05  # of the bytes, for each of val and held
LARGEST_PART = 0.25  # of an evaluation split: a larger file would dominate it, so it trains


@dataclass(frozen=True)
class _Module:
    path: str
    text: str
    size: int
    key: str


def stdlib_source(root: Path | None = None) -> Source:
    """The standard library under `root` (default: this interpreter's) as three shards, one a split."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    modules = list(_modules(root))
    if not modules:
        raise DataError(
            f"{root}: expected Python files, found none; install a Python with its library, or use another data set"
        )
    placed = _place(modules)
    content = hashlib.sha256("".join(module.key for module in modules).encode()).hexdigest()
    shards = [Shard(f"stdlib/{split}", split, partial(_documents, placed[split])) for split in placed]
    return Source("stdlib", content, lambda: shards)


def _modules(root: Path) -> Iterator[_Module]:
    """Every decodable file, by path; a file in another encoding is left out."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.isdisjoint(relative.parts):
            content = path.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            key = hashlib.sha256(relative.as_posix().encode() + b"\0" + content).hexdigest()
            yield _Module(relative.as_posix(), text, len(content), key)


def _place(modules: list[_Module]) -> dict[str, list[_Module]]:
    """Files in the order of their hashes fill val, then held, to their share of the bytes; the rest trains."""
    quota = EVAL_SHARE * sum(module.size for module in modules)
    placed: dict[str, list[_Module]] = {"val": [], "held": [], "train": []}
    filled = {"val": 0, "held": 0}
    for module in sorted(modules, key=lambda module: module.key):
        open_splits = [split for split, size in filled.items() if size < quota]
        if open_splits and module.size <= LARGEST_PART * quota:
            filled[open_splits[0]] += module.size
            placed[open_splits[0]].append(module)
        else:
            placed["train"].append(module)
    return placed


def _documents(modules: list[_Module]) -> Iterator[str]:
    for module in modules:
        yield from python_chunks(module.text)
