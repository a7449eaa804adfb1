"""A file or folder of the user's own text: .txt, .md, .jsonl (field "text") and .parquet (column "text")."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path

from corpus.errors import DataError
from corpus.readers import READERS
from corpus.source import Shard, Source

EVAL_SHARE = 0.05
EVAL_BYTES = 20_000_000  # an evaluation split of large data need not be larger


def local_source(dataset: str) -> Source:
    """The readable files at or below the path, in the order of their names; each document's hash decides its split.

    The identity is made of names, sizes and times of change, so that large data need not be read to be recognised.
    """
    root = Path(dataset).expanduser().absolute()
    if not root.exists():
        raise DataError(
            f"data set {dataset!r}: expected stdlib, climbmix, tinystories or the path of a file or folder, "
            "found no such name and no such path; check the spelling"
        )
    files = _files(root)
    if not files:
        raise DataError(f"{root}: expected {', '.join(READERS)} files, found none; convert the text to one of these")
    stats = [path.stat() for path in files]
    names = [path.relative_to(root.parent).as_posix() for path in files]
    identity = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)]
    total = max(1, sum(stat.st_size for stat in stats))
    shards = [
        Shard(name, None, partial(READERS[path.suffix.lower()], path)) for name, path in zip(names, files, strict=True)
    ]
    name = re.sub(r"[^a-z0-9._-]+", "-", root.stem.lower()).strip("-.") or "text"
    content = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Source(name, content, lambda: shards, min(EVAL_SHARE, EVAL_BYTES / total))


def _files(root: Path) -> list[Path]:
    """Readable files by name; hidden ones and those in hidden folders are somebody's machinery, not text."""
    if root.is_file():
        return [root] if root.suffix.lower() in READERS else []
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in READERS)
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
