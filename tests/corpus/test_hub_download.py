"""Downloads through the real client against a real server, one that drops, shortens, refuses and lies."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hub_server import CLIMBMIX, TINYSTORIES, HubServer, parquet, texts

from corpus import hub as hub_module
from corpus.build import prepare_data
from corpus.errors import DataError
from corpus.tokenizer import Tokenizer

FIRST = "shard_00000.parquet"
CHUNK = 1 << 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "PATIENCE", 0.01)


def prepare(server: HubServer, cache: Path, dataset: str = "climbmix", shards: int = 1) -> Path:
    return prepare_data(
        dataset,
        cache=cache,
        vocab_size=300,
        max_seq_len=64,
        eval_tokens=1_000,
        shards=shards,
        workers=2,
        progress=False,
        endpoint=server.url,
    )


def documents(folder: Path, split: str) -> list[str]:
    tokenizer = Tokenizer.load(folder)
    tokens, starts = np.load(folder / f"{split}.npy"), np.load(folder / f"{split}_docs.npy")
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(starts)]


def held_files(cache: Path, name: str = FIRST) -> list[Path]:
    return list((cache / "hub").rglob(f"*-{name}"))


def assert_whole(server: HubServer, cache: Path, name: str = FIRST) -> None:
    (path,) = held_files(cache, name)
    assert path.read_bytes() == server.files[CLIMBMIX][name]
    assert not list((cache / "hub").rglob("*.part"))


def test_climbmix_splits_are_whole_shards(climbmix: HubServer, tmp_path: Path) -> None:
    folder = prepare(climbmix, tmp_path, shards=3)
    assert documents(folder, "val") == texts(150, seed=6542)
    assert documents(folder, "held") == texts(150, seed=6541)
    assert documents(folder, "train") == [text for number in range(3) for text in texts(2_500, seed=number)]
    for name in climbmix.files[CLIMBMIX]:
        assert_whole(climbmix, tmp_path, name)


def test_files_are_downloaded_at_the_same_time(climbmix: HubServer, tmp_path: Path) -> None:
    climbmix.delay = 0.01
    prepare(climbmix, tmp_path, shards=2)
    assert climbmix.busiest >= 2
    assert len(climbmix.downloads()) == 4
    assert not climbmix.answering


def test_validation_text_in_a_training_shard_is_left_out(climbmix: HubServer, tmp_path: Path) -> None:
    leaked = texts(150, seed=6542)[7]
    climbmix.files[CLIMBMIX][FIRST] = parquet([*texts(300, seed=0), "  " + leaked.replace(" ", "\n")])
    folder = prepare(climbmix, tmp_path)
    assert documents(folder, "train") == texts(300, seed=0)


@pytest.mark.parametrize(
    "faults",
    [
        ["drop:1300000"],
        ["503", "503"],
        ["short:1200000"],
        ["wrong"],
        ["drop:1100000", "whole"],
        ["503", "drop:0", "wrong"],
    ],
)
def test_trouble_on_the_way_is_survived(climbmix: HubServer, tmp_path: Path, faults: list[str]) -> None:
    climbmix.faults[FIRST] = faults
    folder = prepare(climbmix, tmp_path)
    assert_whole(climbmix, tmp_path)
    assert documents(folder, "train") == texts(2_500, seed=0)
    assert not climbmix.faults[FIRST]


def test_a_dropped_connection_is_resumed_not_repeated(climbmix: HubServer, tmp_path: Path) -> None:
    climbmix.faults[FIRST] = ["drop:1300000"]
    prepare(climbmix, tmp_path)
    assert climbmix.ranges() == [f"bytes={CHUNK}-"]


def test_metadata_is_asked_for_again_after_a_503(climbmix: HubServer, tmp_path: Path) -> None:
    climbmix.api_faults = [503, 500]
    prepare(climbmix, tmp_path)
    assert_whole(climbmix, tmp_path)


@pytest.mark.parametrize("fault", ["wrong", "503", "short:1000"])
def test_endless_trouble_is_one_line_and_no_file(climbmix: HubServer, tmp_path: Path, fault: str) -> None:
    climbmix.faults[FIRST] = [fault] * 50
    with pytest.raises(DataError, match=f"^{FIRST}: expected to get it") as caught:
        prepare(climbmix, tmp_path)
    assert "\n" not in str(caught.value)
    assert not held_files(tmp_path)
    climbmix.faults[FIRST] = []
    prepare(climbmix, tmp_path)
    assert_whole(climbmix, tmp_path)


def test_a_truncated_parquet_is_refused_even_if_the_hub_vouches_for_it(climbmix: HubServer, tmp_path: Path) -> None:
    climbmix.files[CLIMBMIX][FIRST] = climbmix.files[CLIMBMIX][FIRST][:-100]
    with pytest.raises(DataError, match="expected a whole parquet file"):
        prepare(climbmix, tmp_path)
    assert not held_files(tmp_path)


def test_a_parquet_without_text_names_its_columns(climbmix: HubServer, tmp_path: Path) -> None:
    climbmix.files[CLIMBMIX][FIRST] = parquet(texts(10, seed=0), column="content")
    with pytest.raises(DataError, match=r"expected a column `text`, found content"):
        prepare(climbmix, tmp_path)


def test_an_unknown_repository_fails_at_once(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="status 404") as caught:
        prepare(hub, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(hub.requests) == 1


def test_a_missing_shard_is_named(climbmix: HubServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected shard_00003.parquet, found no such file"):
        prepare(climbmix, tmp_path, shards=4)


@pytest.mark.parametrize("shards", [0, 6542])
def test_impossible_numbers_of_shards(hub: HubServer, tmp_path: Path, shards: int) -> None:
    with pytest.raises(DataError, match=f"expected 1 to 6541 training shards, found {shards}"):
        prepare(hub, tmp_path, shards=shards)


def test_nobody_listening_is_one_line(tmp_path: Path) -> None:
    server = HubServer()
    server.server_close()
    with pytest.raises(DataError, match=r"list of files in karpathy/climbmix.*check the connection"):
        prepare(server, tmp_path)


def test_no_network_is_used_for_what_is_here(climbmix: HubServer, tmp_path: Path) -> None:
    prepare(climbmix, tmp_path)
    asked = len(climbmix.requests)
    folder = prepare(climbmix, tmp_path)
    meta = folder / "meta.json"
    meta.unlink()
    (folder / "tokenizer.json").unlink()
    assert prepare(climbmix, tmp_path) == folder
    assert meta.exists()
    assert len(climbmix.requests) == asked


def test_more_shards_download_only_what_is_new(climbmix: HubServer, tmp_path: Path) -> None:
    prepare(climbmix, tmp_path, shards=1)
    before = len(climbmix.downloads())
    prepare(climbmix, tmp_path, shards=2)
    assert [path.rsplit("/", 1)[1] for path in climbmix.downloads()[before:]] == ["shard_00001.parquet"]


def test_no_token_and_no_foreign_folder(climbmix: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare(climbmix, tmp_path / "cache")
    assert all("authorization" not in headers for _, _, headers in climbmix.requests)
    assert all("agent/" not in headers["user-agent"] for _, _, headers in climbmix.requests)
    assert not (tmp_path / "home").exists()


def test_the_endpoint_may_come_from_the_environment(
    climbmix: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    prepare_data("climbmix", cache=tmp_path, vocab_size=257, max_seq_len=64, eval_tokens=10, shards=1)
    assert_whole(climbmix, tmp_path)


def test_tinystories_rows_follow_its_page(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TINYSTORIES_ROWS", 40)
    stories = texts(200, seed=5)
    hub.files[TINYSTORIES] = {
        "README.md": b"about",
        "a.parquet": parquet(stories[:60]),
        "data/b.parquet": parquet(stories[60:]),
    }
    hub.small = {"README.md", "a.parquet"}
    folder = prepare(hub, tmp_path, "tinystories")
    assert documents(folder, "held") == stories[:40]
    assert documents(folder, "val") == stories[40:80]
    assert documents(folder, "train") == stories[80:]
    assert json.loads((folder / "meta.json").read_text())["documents"] == {"val": 40, "held": 40, "train": 120}
