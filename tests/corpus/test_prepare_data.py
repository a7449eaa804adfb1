"""Prepared data sets on disk: their format, their splits, when they are made again and when they are not."""

import hashlib
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import texts

from corpus.build import prepare_data
from corpus.documents import SPLITS, digest
from corpus.errors import DataError
from corpus.home import verify
from corpus.stdlib import stdlib_source
from corpus.tokenizer import Tokenizer

FILES = {"tokenizer.json", "token_bytes.npy"} | {f"{s}{k}.npy" for s in SPLITS for k in ("", "_docs")}


def prepare(dataset: Path | str, cache: Path, vocab: int = 320, length: int = 64, evaluation: int = 1_000) -> Path:
    return prepare_data(str(dataset), cache=cache, vocab_size=vocab, max_seq_len=length, eval_tokens=evaluation)


def meta_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    return content


def documents(folder: Path, split: str) -> list[str]:
    tokenizer = Tokenizer.load(folder)
    tokens, starts = np.load(folder / f"{split}.npy"), np.load(folder / f"{split}_docs.npy")
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(starts)]


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare("stdlib", tmp_path_factory.mktemp("cache"), vocab=1024, length=256, evaluation=131_072)


def test_files_and_types_are_what_the_format_says(stdlib: Path) -> None:
    meta = meta_of(stdlib)
    assert {path.name for path in stdlib.iterdir()} == FILES | {"meta.json", ".lock"}
    assert set(meta["files"]) == FILES
    for split in SPLITS:
        tokens = np.load(stdlib / f"{split}.npy", allow_pickle=False)
        starts = np.load(stdlib / f"{split}_docs.npy", allow_pickle=False)
        assert (tokens.dtype, tokens.ndim, len(tokens)) == (np.uint16, 1, meta[f"{split}_tokens"])
        assert (starts.dtype, len(starts), starts[0], starts[-1]) == (
            np.int64,
            meta["documents"][split] + 1,
            0,
            len(tokens),
        )
        assert (np.diff(starts) > 1).all()
        assert (tokens[starts[:-1]] == meta["bos_id"]).all()
        assert (tokens == meta["bos_id"]).sum() == meta["documents"][split]
    for name, sha256 in meta["files"].items():
        assert hashlib.sha256((stdlib / name).read_bytes()).hexdigest() == sha256


def test_token_bytes_add_up_to_the_text(stdlib: Path) -> None:
    meta = meta_of(stdlib)
    sizes = np.load(stdlib / "token_bytes.npy", allow_pickle=False)
    assert (sizes.dtype, sizes.shape, meta["vocab_size"]) == (np.int32, (1024,), 1024)
    assert sizes[meta["bos_id"]] == 0
    assert (np.delete(sizes, meta["bos_id"]) > 0).all()
    for split in SPLITS:
        assert sizes[np.load(stdlib / f"{split}.npy")].sum() == meta["bytes"][split]


def test_stdlib_is_split_by_files_and_no_text_is_lost(stdlib: Path) -> None:
    meta = meta_of(stdlib)
    total = sum(meta["bytes"].values())
    assert total > 8_000_000
    for split in ("val", "held"):
        assert 0.05 * total <= meta["bytes"][split] <= 0.07 * total
    source = {shard.split: "".join(shard.read()) for shard in stdlib_source().open()}
    assert "".join(documents(stdlib, "val")) == source["val"]
    assert 0 <= len(source["train"].encode()) - meta["bytes"]["train"] < 20_000  # repeated documents, nothing else


def test_no_evaluation_document_is_in_another_split(stdlib: Path) -> None:
    digests = {split: {digest(text) for text in documents(stdlib, split)} for split in SPLITS}
    assert digests["val"].isdisjoint(digests["train"])
    assert digests["held"].isdisjoint(digests["train"])
    assert digests["val"].isdisjoint(digests["held"])
    assert len(digests["val"]) == meta_of(stdlib)["documents"]["val"]


def test_stdlib_leaves_out_tests_and_undecodable_files(tmp_path: Path) -> None:
    for name in ("good.py", "test/test_x.py", "pkg/tests/y.py", "site-packages/z.py", "pkg/mod.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    found = {text for shard in stdlib_source(tmp_path).open() for text in shard.read()}
    assert found == {"# good.py\n", "# pkg/mod.py\n"}


def test_a_finished_data_set_is_not_touched(prose: Path, tmp_path: Path) -> None:
    folder = prepare(prose, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(prose, tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_two_builds_are_equal_byte_for_byte(prose: Path, tmp_path: Path) -> None:
    first, second = (prepare(prose, tmp_path / name) for name in ("one", "two"))
    assert first.name == second.name
    for name in FILES | {"meta.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_every_ingredient_is_in_the_data_id(prose: Path, tmp_path: Path) -> None:
    folders = [
        prepare(prose, tmp_path),
        prepare(prose, tmp_path, vocab=321),
        prepare(prose, tmp_path, vocab=256),
        prepare(prose, tmp_path, length=65),
        prepare(prose, tmp_path, evaluation=1_001),
    ]
    with (prose / "part00.txt").open("a") as file:
        file.write("One more sentence.\n")
    folders.append(prepare(prose, tmp_path))
    identities = [meta_of(folder)["data_id"] for folder in folders]
    assert len(set(folders)) == len(set(identities)) == 6
    assert all(len(identity) == 12 for identity in identities)


def test_the_data_id_does_not_depend_on_where_the_text_lies(prose: Path, tmp_path: Path) -> None:
    first = meta_of(prepare(prose, tmp_path / "cache"))["data_id"]
    assert meta_of(prepare(prose.rename(tmp_path / "moved"), tmp_path / "cache"))["data_id"] == first


def test_current_names_the_data_set_prepared_last(prose: Path, tmp_path: Path) -> None:
    first, second = prepare(prose, tmp_path), prepare(prose, tmp_path, vocab=257)
    assert (tmp_path / "current").read_text() == second.name + "\n"
    prepare(prose, tmp_path)
    assert (tmp_path / "current").read_text() == first.name + "\n"


@pytest.mark.parametrize("vocab", [256, 257])
def test_bytes_are_a_vocabulary(prose: Path, tmp_path: Path, vocab: int) -> None:
    folder = prepare(prose, tmp_path, vocab=vocab)
    meta = meta_of(folder)
    assert (meta["vocab_size"], meta["bos_id"]) == (257, 256)
    assert json.loads((folder / "tokenizer.json").read_text())["kind"] == "bytes"
    assert meta["train_tokens"] == meta["bytes"]["train"] + meta["documents"]["train"]
    starts, tokens = np.load(folder / "val_docs.npy"), np.load(folder / "val.npy")
    assert bytes(tokens[1 : starts[1]].astype(np.uint8)).decode() == documents(folder, "val")[0]


def write_jsonl(folder: Path, stories: list[str]) -> Path:
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(stories)))
    return path


def write_parquet(folder: Path, stories: list[str]) -> Path:
    path = folder / "stories.parquet"
    pq.write_table(pa.table({"id": range(len(stories)), "text": stories}), path)
    return path


def write_text(folder: Path, stories: list[str]) -> Path:
    path = folder / "Stories And More.TXT"
    path.write_text("\n".join(stories))
    return path


def write_folder(folder: Path, stories: list[str]) -> Path:
    (folder / "mixed" / "deep").mkdir(parents=True)
    write_jsonl(folder / "mixed", stories[:100])
    write_parquet(folder / "mixed" / "deep", stories[100:200])
    for number, story in enumerate(stories[200:]):
        (folder / "mixed" / f"{number}.md").write_text(story)
    (folder / "mixed" / ".hidden").mkdir()
    (folder / "mixed" / ".hidden" / "secret.txt").write_text("hidden text")
    (folder / "mixed" / "picture.png").write_bytes(b"\x89PNG")
    return folder / "mixed"


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_text, write_folder])
def test_text_of_ones_own_in_every_form(tmp_path: Path, write: Any) -> None:
    stories = texts(400, seed=1)
    folder = prepare(write(tmp_path, stories), tmp_path / "cache")
    found = [text for split in SPLITS for text in documents(folder, split)]
    assert sum(text.count(" 1:") or text.count("1:") for text in found) == 400
    assert sorted("".join(found)) == sorted("".join(stories) + ("\n" * 399 if write is write_text else ""))
    assert min(meta_of(folder)["documents"].values()) >= 3
    assert folder.name.startswith(("stories", "stories-and-more", "mixed"))


def test_repeated_documents_are_in_one_split_only(tmp_path: Path) -> None:
    folder = prepare(write_jsonl(tmp_path, texts(400, seed=1) * 2), tmp_path / "cache")
    found = {split: set(documents(folder, split)) for split in SPLITS}
    assert sum(len(part) for part in found.values()) == 400
    assert meta_of(folder)["documents"]["val"] == len(found["val"])


def one_file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 " * 9, r"a.txt: expected UTF-8 text, found"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a.jsonl:2: expected a JSON object with \"text\""),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: expected a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', r'a.jsonl:1: expected a string in "text", found int'),
        ("a.parquet", b"PAR1 cut off", r"a.parquet: expected a whole parquet file"),
        ("a.txt", b"too little", r"expected more than 64 tokens in split val, found"),
        ("a.doc", b"words", r"expected .txt, .md, .jsonl, .parquet files, found none"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(one_file(tmp_path, name, content), tmp_path / "cache", vocab=257)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "current").exists()


def test_settings_out_of_range_are_one_line(prose: Path, tmp_path: Path) -> None:
    for vocab in (0, 255, 65_537):
        with pytest.raises(DataError, match=f"expected 256 .bytes. to 65536 entries, found {vocab}"):
            prepare(prose, tmp_path, vocab=vocab)
    with pytest.raises(DataError, match="expected a positive sequence length"):
        prepare(prose, tmp_path, length=0)
    with pytest.raises(DataError, match=r"found text for only \d+; give more text"):
        prepare(prose, tmp_path, vocab=60_000)
    with pytest.raises(DataError, match=r"'climbmx': expected stdlib, climbmix, tinystories or the path"):
        prepare("climbmx", tmp_path)
    with pytest.raises(DataError, match="expected to read and write here"):
        prepare(prose, prose / "part00.txt")


@pytest.mark.parametrize("name", ["val.npy", "tokenizer.json", "meta.json"])
def test_a_data_set_that_was_changed_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    verify(copy)
    text = (copy / name).read_bytes()
    (copy / name).write_bytes(text.replace(b"640", b"650") if name == "meta.json" else text + b" ")
    with pytest.raises(DataError, match="prepare it again"):
        verify(copy)
