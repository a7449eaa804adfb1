"""Ctrl-C, SIGKILL and full disks, in real processes: one line, nothing lost, the next run ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import CLIMBMIX, HubServer, texts

from corpus import tokens
from corpus.build import prepare_data
from corpus.source import Shard
from corpus.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SHARD = "shard_00000.parquet"
CHILD = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job that a shell put in the background ignores it
from pathlib import Path
from corpus.build import prepare_data
from corpus.errors import DataError
dataset, cache, endpoint, limit = json.loads(sys.argv[1])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
try:
    print(prepare_data(dataset, cache=Path(cache), vocab_size=300, max_seq_len=64, eval_tokens=1000, shards=1,
                       workers=2, progress=True, endpoint=endpoint))
except DataError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(dataset: str, cache: Path, endpoint: str | None = None, limit: int = 0) -> subprocess.Popen[bytes]:
    """A real process that prepares data, in a group of its own as in a terminal, past its imports.

    Its pipes have no buffer here: one would swallow a quick child's next line together with "ready", and
    `communicate` reads past it.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps([dataset, str(cache), endpoint, limit])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=ROOT,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def arrived(cache: Path) -> int:
    return sum(part.stat().st_size for part in (cache / "hub").rglob("*.part"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def prepared(dataset: str, cache: Path, endpoint: str | None = None) -> Path:
    return prepare_data(
        dataset, cache=cache, vocab_size=300, max_seq_len=64, eval_tokens=1000, shards=1, endpoint=endpoint
    )


def fetchers() -> list[str]:
    """Command lines of downloading processes that are alive."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in lines if "corpus.fetch" in line]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_continues_where_it_stopped(
    climbmix: HubServer, tmp_path: Path, end: signal.Signals
) -> None:
    climbmix.delay = 0.05
    cache = tmp_path / "cache"
    child = start("climbmix", cache, climbmix.url)
    wait_for(lambda: arrived(cache) >= 1 << 20)
    if end == signal.SIGINT:
        os.killpg(child.pid, end)  # as a terminal does
    else:
        child.kill()
    _, errors = child.communicate(timeout=10)
    if end == signal.SIGINT:
        assert errors == (
            b"Interrupted: stopped by Ctrl-C; what was finished is kept: run the same command to continue\n"
        )
    wait_for(lambda: not any(str(cache) in line for line in fetchers()))
    climbmix.delay = 0
    climbmix.revision = "b" * 40
    folder = prepared("climbmix", cache, climbmix.url)
    assert f"bytes={1 << 20}-" in climbmix.ranges()
    assert all("/" + "b" * 40 + "/" not in path for path in climbmix.downloads())
    assert content(folder) == content(prepared("climbmix", tmp_path / "fresh", climbmix.url))


def test_ctrl_c_while_tokenising_continues_to_the_same_bytes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    child = start("stdlib", cache)
    wait_for(lambda: list(cache.glob("data/*/tokenizer.json")))
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=10)
    assert child.returncode == 1
    assert errors.count(b"\n") == 1
    assert errors.startswith(b"Interrupted: stopped by Ctrl-C")
    assert not list(cache.glob("data/*/meta.json"))
    assert not (cache / "current").exists()
    resumed = content(prepared("stdlib", cache))
    assert resumed == content(prepared("stdlib", tmp_path / "fresh"))


def test_every_place_to_stop_leads_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHECKPOINT_CHARS", 20_000)
    monkeypatch.setattr(tokens, "BATCH_CHARS", 3_000)
    tokenizer = Tokenizer.of_bytes()
    splits = ("val", "held", "train", "train", None, None)
    parts = [texts(9, seed=number) + texts(2, seed=0) for number in range(6)]
    whole = [Shard(str(n), split, lambda n=n: iter(parts[n])) for n, split in enumerate(splits)]
    (tmp_path / "whole").mkdir()
    counts = tokens.tokenise(whole, tokenizer, tmp_path / "whole", 0.2, 1, False)
    for stop in range(6):
        folder = tmp_path / f"stop{stop}"
        folder.mkdir()
        broken = [Shard(s.name, s.split, lambda n=n: broken_off(parts[n])) for n, s in enumerate(whole)]
        with pytest.raises(KeyboardInterrupt):
            tokens.tokenise([*whole[:stop], *broken[stop:]], tokenizer, folder, 0.2, 1, False)
        assert tokens.tokenise(whole, tokenizer, folder, 0.2, 1, False) == counts
        assert content(folder) == content(tmp_path / "whole")


def broken_off(documents: list[str]) -> Iterator[str]:
    yield from documents[:6]
    raise KeyboardInterrupt


def test_a_full_disk_is_one_line_and_the_next_run_continues(prose: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    child = start(str(prose), cache, limit=200_000)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 1
    assert errors.count(b"\n") == 1
    assert b"expected to read and write here, found File too large" in errors
    folder = prepared(str(prose), cache)
    assert content(folder) == content(prepared(str(prose), tmp_path / "fresh"))


def test_two_at_once_make_it_once(prose: Path, tmp_path: Path) -> None:
    children = [start(str(prose), tmp_path / "cache") for _ in range(2)]
    outcomes = [child.communicate(timeout=30) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outcomes[0][0] == outcomes[1][0] != b""
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1


def test_a_corrupted_state_is_refused_or_rebuilt(climbmix: HubServer, tmp_path: Path) -> None:
    folder = prepared("climbmix", tmp_path / "cache", climbmix.url)
    good = content(folder)
    with (folder / "train.npy").open("ab") as file:
        file.write(b"x")
    assert content(prepared("climbmix", tmp_path / "cache", climbmix.url)) == good
    (folder / "val.npy").unlink()
    assert content(prepared("climbmix", tmp_path / "cache", climbmix.url)) == good
    assert len(climbmix.files[CLIMBMIX]) == 5
