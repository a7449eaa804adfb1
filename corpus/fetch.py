"""Downloads the files of one hub data set: parallel, retried, resumed, verified. A process of its own:

    python -m corpus.fetch ORDER      (JSON of `corpus.remote.Order`; ends when its standard input does)

A process, because then Ctrl-C is a kill that loses nothing, and because `huggingface_hub` reads its settings from the
environment once, at import. Failures are one line on stderr and exit 1.

`huggingface_hub` supplies addresses, metadata and transfer. Its cache is not used, because that drops what an
interrupted process had downloaded of a file.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile

from corpus.errors import DataError
from corpus.readers import parquet_rows
from corpus.remote import Listing, Order, RemoteFile
from corpus.store import write_atomically

TRIES = 5  # in a row without a byte of progress
LONGEST_WAIT = 30.0  # seconds between tries
TIMEOUT = 30.0  # seconds without an answer or a byte
CHUNK = 1 << 20  # bytes that a broken connection can cost
REFUSALS = (400, 401, 403, 404, 410)

T = TypeVar("T")


class Damaged(Exception):
    """A download came to its end but is not the file."""


def main() -> int:
    """Gets what the order on the command line asks for; the exit status."""
    order = Order.from_json(sys.argv[1])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=TIMEOUT))
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    try:
        download(order, order.known() or resolve(order))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def resolve(order: Order) -> Listing:
    """Asks the hub which files there are at which revision, and writes that down."""
    listing = retried(lambda: _ask(order), f"list of files in {order.repo}", order.patience)
    write_atomically(order.listing, listing.to_json())
    return listing


def download(order: Order, listing: Listing) -> None:
    """Gets every file that is not here yet, `order.workers` at a time; the first failure ends the waiting ones."""
    waiting = [file for file in listing.files if not file.is_here(order.folder)]
    with ThreadPoolExecutor(order.workers) as pool:
        jobs = [pool.submit(fetch, file, order, listing.revision) for file in waiting]
        try:
            for job in as_completed(jobs):
                job.result()
        except DataError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch(file: RemoteFile, order: Order, revision: str) -> None:
    """Gets one file under another name, verifies it, and only then gives it its own."""
    part = file.part(order.folder)
    url = hf_hub_url(order.repo, file.path, repo_type="dataset", revision=revision)
    retried(lambda: _pull(file, url, part), file.path, order.patience, lambda: _size(part))
    if file.path.endswith(".parquet"):
        parquet_rows(part)
    part.replace(file.local(order.folder))


def retried(attempt: Callable[[], T], what: str, patience: float, done: Callable[[], int] = lambda: 0) -> T:
    """`attempt` until it succeeds, is refused, or fails TRIES times in a row without `done` (bytes) growing."""
    failures = 0
    while True:
        before = done()
        try:
            return attempt()
        except (httpx2.HTTPError, OSError, Damaged) as error:
            failures = 1 if done() > before else failures + 1
            if _is_final(error) or failures >= TRIES:
                raise DataError(f"{what}: expected to get it from the hub, found {_advice(error)}") from error
        time.sleep(min(LONGEST_WAIT, patience * 2.0 ** (failures - 1)))


def _ask(order: Order) -> Listing:
    hub = HfApi(token=False)
    revision = hub.dataset_info(order.repo, timeout=TIMEOUT).sha
    if order.paths:
        found = hub.get_paths_info(order.repo, list(order.paths), revision=revision, repo_type="dataset")
    else:
        found = list(hub.list_repo_tree(order.repo, recursive=True, revision=revision, repo_type="dataset"))
    items = [item for item in found if isinstance(item, RepoFile) and item.path.lower().endswith(order.suffixes)]
    files = [RemoteFile(item.path, item.size, item.lfs.sha256 if item.lfs else item.blob_id) for item in items]
    missing = sorted(set(order.paths) - {file.path for file in files})
    if revision is None or missing or not files:
        wanted = ", ".join(missing or order.suffixes)
        raise DataError(f"{order.repo}: expected {wanted}, found no such file there; ask for other shards")
    return Listing(revision, tuple(sorted(files, key=lambda file: file.path)))


def _pull(file: RemoteFile, url: str, part: Path) -> None:
    """Continues `part` to its end. What turns out to be other content is dropped, so that the next try starts over."""
    with part.open("ab") as out:
        size = out.tell()
        if size > file.size:
            out.truncate(0)
            size = 0
        http_get(url, out, resume_size=size, expected_size=file.size)
        out.flush()
        os.fsync(out.fileno())
    if not file.matches(part):
        part.unlink()
        raise Damaged(f"{file.size} bytes of other content (its hash is not {file.hash[:16]}…)")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_final(error: Exception) -> bool:
    """Whether trying again is useless: the hub refuses, or this machine cannot write."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in REFUSALS
    return isinstance(error, OSError) and error.errno is not None


def _advice(error: Exception) -> str:
    """What was found and what to do about it, in one line."""
    found = (" ".join(str(error).split()) or type(error).__name__)[:160]
    if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSALS:
        return f"status {error.response.status_code}; check the endpoint, or use --dataset stdlib ({found})"
    if _is_final(error):
        return f"{found}; free the disk or mend the path, then run the same command again"
    return f"{found}; check the connection, then run the same command to continue, or use --dataset stdlib"


def _leave_with_parent() -> None:
    """Whoever started this process holds the other end of its standard input for as long as it lives."""
    os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter ends
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
