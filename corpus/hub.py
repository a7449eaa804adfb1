"""Data sets from the Hugging Face hub: which files, which split each row belongs to, and getting them here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from corpus.errors import DataError
from corpus.progress import progress_bar
from corpus.readers import parquet_rows, read_parquet
from corpus.remote import Listing, Order
from corpus.source import Shard, Source
from corpus.store import locked

ENDPOINT = "https://huggingface.co"
PATIENCE = 1.0  # seconds before the first of four retries; half a minute in all
POLL = 0.1  # seconds between looks at the downloading process
CLIMBMIX = "karpathy/climbmix-400b-shuffle"
CLIMBMIX_LAST = 6542  # pinned as validation; the shard before it is held back; those before are training text
TINYSTORIES = "karpathy/tinystories-gpt4-clean"
TINYSTORIES_ROWS = 10_000  # the split its page suggests: first test (here: held), then validation, then training rows


@dataclass(frozen=True)
class Fetching:
    """How files are got: where they are kept, how many at a time, whether to show it, and from where."""

    folder: Path
    workers: int
    progress: bool
    endpoint: str


def hub_source(name: str, folder: Path, shards: int, workers: int, progress: bool, endpoint: str | None) -> Source:
    """`climbmix` (with `shards` training shards) or `tinystories`. Nothing is downloaded before `open` is called."""
    where = endpoint or os.environ.get("HF_ENDPOINT", ENDPOINT)
    fetching = Fetching(folder.absolute() / name, max(1, workers), progress, where)
    if name == "climbmix":
        if not 1 <= shards <= CLIMBMIX_LAST - 1:
            raise DataError(f"climbmix: expected 1 to {CLIMBMIX_LAST - 1} training shards, found {shards}; try 10")
        return Source(name, json.dumps([CLIMBMIX, shards]), partial(_climbmix, shards, fetching))
    return Source(name, TINYSTORIES, partial(_tinystories, fetching))


def _climbmix(shards: int, fetching: Fetching) -> list[Shard]:
    splits = {_shard_name(CLIMBMIX_LAST): "val", _shard_name(CLIMBMIX_LAST - 1): "held"}
    splits |= {_shard_name(number): "train" for number in range(shards)}
    order = Order(CLIMBMIX, tuple(splits), (".parquet",), fetching.folder, fetching.workers, PATIENCE)
    files = get(order, fetching).files
    return [Shard(f.path, splits[f.path], partial(read_parquet, f.local(order.folder))) for f in files]


def _shard_name(number: int) -> str:
    return f"shard_{number:05d}.parquet"


def _tinystories(fetching: Fetching) -> list[Shard]:
    order = Order(TINYSTORIES, (), (".parquet",), fetching.folder, fetching.workers, PATIENCE)
    files = get(order, fetching).files
    paths = [file.local(order.folder) for file in files]
    return list(row_shards(paths, TINYSTORIES_ROWS))


def row_shards(paths: list[Path], rows: int) -> Iterator[Shard]:
    """Parquet files read as one table: its first `rows` rows are held, as many are validation, the rest trains."""
    ends = list(accumulate(parquet_rows(path) for path in paths))
    bounds = {"held": (0, rows), "val": (rows, 2 * rows), "train": (2 * rows, max(ends[-1], 2 * rows))}
    for split, (first, last) in bounds.items():
        for path, start, end in zip(paths, [0, *ends[:-1]], ends, strict=True):
            here = range(max(first, start) - start, min(last, end) - start)
            if here:
                yield Shard(f"{path.name}[{here.start}:{here.stop}]", split, partial(read_parquet, path, here))


def get(order: Order, fetching: Fetching) -> Listing:
    """The files of the order, all of them whole and verified here. No network is needed where they already are."""
    order.folder.mkdir(parents=True, exist_ok=True)
    with locked(order.folder / ".lock"):
        listing = order.known()
        if listing is None or not all(file.is_here(order.folder) for file in listing.files):
            _run(order, fetching)
            listing = order.known()
    assert listing is not None, "the downloading process ends well only after it wrote the listing"
    return listing


def _run(order: Order, fetching: Fetching) -> None:
    """The downloading process, from start to end; if this one is interrupted, that one is killed."""
    log = order.folder / "fetch.log"
    command = [sys.executable, "-m", "corpus.fetch", order.to_json()]
    with log.open("wb") as errors, progress_bar(fetching.progress, total=None, what="download", unit="B") as bar:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=Path(__file__).parent.parent,
            env=_environment(order.folder, fetching.endpoint),
        )
        try:
            while child.poll() is None:
                _show(bar, order)
                time.sleep(POLL)
        finally:
            child.kill()
            child.communicate()
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DataError(lines[0] if len(lines) == 1 else f"download: it broke off; {log} says why")


def _show(bar: Any, order: Order) -> None:
    listing = None if bar.disable else order.known()
    if listing is not None:
        bar.total = sum(file.size for file in listing.files)
        bar.update(listing.bytes_here(order.folder) - bar.n)


def _environment(folder: Path, endpoint: str) -> dict[str, str]:
    """This process's environment without the user's hub settings and tokens: the data sets are public."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": endpoint.rstrip("/"),
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # one way of getting a file, and that one resumes
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_VERBOSITY": "error",
    }
