"""Cutting and placing text, growing arrays, the vocabulary: the parts a data set is made of."""

from pathlib import Path

import numpy as np
import pytest
from hub_server import texts
from hypothesis import given
from hypothesis import strategies as st

from corpus.documents import MAX_CHUNK, MIN_CHUNK, digest, python_chunks, split_by_digest, text_chunks
from corpus.errors import DataError
from corpus.readers import LONGEST_LINE, read_text
from corpus.store import GrowingArray, write_atomically
from corpus.tokenizer import BOS, Tokenizer

LINES = st.lists(st.sampled_from(["", "    x = 1", "def f():", "class A:", "@wrap", "# " + "c" * 3_000, "words"]))


@given(LINES)
def test_chunks_joined_are_the_text(lines: list[str]) -> None:
    source = "\n".join(lines)
    assert "".join(python_chunks(source)) == source
    assert "".join(text_chunks(source.splitlines(keepends=True))) == source


def test_python_is_cut_before_definitions() -> None:
    body = "    value = compute(value)\n" * 100
    source = "".join(f"def function_{n}():\n{body}\n\n" for n in range(5))
    chunks = list(python_chunks(source))
    assert [chunk.split("(")[0] for chunk in chunks] == [f"def function_{n}" for n in range(5)]


def test_chunks_keep_their_size_without_any_boundary() -> None:
    chunks = list(python_chunks("    value = compute(value)\n" * 2_000))
    assert all(MAX_CHUNK <= len(chunk) < MAX_CHUNK + 40 for chunk in chunks[:-1])
    prose = "".join(text + "\n" for text in texts(200, seed=3))
    assert all(MIN_CHUNK <= len(chunk) <= MAX_CHUNK + 1_000 for chunk in list(text_chunks(prose.splitlines(True)))[:-1])


def test_one_endless_line_still_streams(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 100_000)
    chunks = list(read_text(tmp_path / "a.txt"))
    assert "".join(chunks) == "word " * 100_000
    assert max(map(len, chunks)) == LONGEST_LINE


def test_digests_ignore_white_space_and_nothing_else() -> None:
    assert digest("a  b\n\tc ") == digest("a b c")
    assert digest("a b c") != digest("a b C")


def test_documents_are_placed_in_the_asked_proportions() -> None:
    placed = [split_by_digest(digest(str(n)), 0.1) for n in range(20_000)]
    assert placed.count("val") == pytest.approx(2_000, rel=0.1)
    assert placed.count("held") == pytest.approx(2_000, rel=0.1)


def test_a_growing_array_is_a_whole_array_at_every_sync(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    array = GrowingArray(path, "<u2", 0)
    for end in (3, 70_000, 70_001):
        array.append(np.arange(array.count, end) % 65_536)
        array.sync()
        assert (np.load(path, allow_pickle=False) == np.arange(end) % 65_536).all()
    array.append(np.zeros(5))
    array.close()
    again = GrowingArray(path, "<u2", 70_001)
    again.append(np.array([7]))
    again.sync()
    again.close()
    assert np.load(path)[-2:].tolist() == [70_000 % 65_536, 7]
    with pytest.raises(DataError, match="expected 160128 bytes"):
        GrowingArray(path, "<u2", 80_000)


def test_atomic_writes_replace_and_leave_nothing_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", b"two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["two"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(texts(200, seed=2), 400)


def test_a_vocabulary_has_exactly_the_asked_size(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, len(tokenizer.token_bytes())) == (400, 399, 400)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(texts(200, seed=2), 400).to_json() == tokenizer.to_json()


@given(st.text())
def test_encoding_and_decoding_is_the_text(text: str) -> None:
    for tokenizer in (Tokenizer.of_bytes(), LEARNED):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.bos_id not in ids
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) if ids else not text
        (document,) = tokenizer.encode_batch([text])
        assert document.tolist() == [tokenizer.bos_id, *ids]


LEARNED = Tokenizer.train(texts(50, seed=4), 300)


def test_the_name_of_bos_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id not in tokenizer.encode(f"a {BOS} b")
    assert tokenizer.bos_id not in tokenizer.encode_batch([BOS])[0][1:]
    assert tokenizer.decode([tokenizer.bos_id]) == BOS


def test_indentation_is_one_token_with_its_line_end() -> None:
    code = "def f(self):\n        return self.value\n        return 1\n"
    learned = Tokenizer.train([code * 50], 280)
    pieces = [learned.decode([token]) for token in learned.encode(code)]
    assert "\n        " in pieces or ":\n        " in pieces or "):\n        " in pieces


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    loaded = Tokenizer.load(tmp_path)
    assert loaded.to_json() == tokenizer.to_json()
    assert loaded.encode("lokan mison") == tokenizer.encode("lokan mison")


@pytest.mark.parametrize("content", ["", "{}", '{"mergeable_ranks": ["!"], "pattern": ""}', None])
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="expected a tokenizer, found"):
        Tokenizer.load(tmp_path)
