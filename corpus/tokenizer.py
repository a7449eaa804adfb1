"""Byte-pair or byte vocabulary: rustbpe trains it, tiktoken encodes with it, JSON keeps it.

Token ids: the mergeable tokens come first (the 256 byte values among them), the one special token, BOS, comes last.
The byte vocabulary is the same without merges: ids 0 to 255 are byte values, 256 is BOS, so the model's is 257.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import rustbpe
import tiktoken

from corpus.errors import DataError

FORMAT = 1
BOS = "<|bos|>"
BYTES_VOCAB = 257  # 256 byte values and BOS
MAX_VOCAB = 1 << 16  # token files are uint16
# GPT-4's split (https://github.com/openai/tiktoken, cl100k_base) with two changes for small vocabularies: digits in
# groups of at most two, which spends fewer entries on numbers, and a line end keeps the indentation that follows it,
# which gives 3 % more bytes per token on Python.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++(?:[\r\n]+[ \t]*)?|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
)

Tokens = npt.NDArray[np.uint16]


class Tokenizer:
    """Text to token ids and back. Make one with `train`, `of_bytes` or `load`."""

    def __init__(self, ranks: Sequence[bytes], pattern: str) -> None:
        """`ranks`: every mergeable token's bytes, in the order of the ids; all 256 single bytes are among them."""
        self._ranks = tuple(ranks)
        self._pattern = pattern
        self.bos_id = len(self._ranks)
        self.vocab_size = len(self._ranks) + 1
        self._encoding = tiktoken.Encoding(
            "overnight",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self._ranks)},
            special_tokens={BOS: self.bos_id},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """A vocabulary of exactly `vocab_size` entries, BOS included, learned from `texts` (257 needs no texts)."""
        if vocab_size == BYTES_VOCAB:
            return cls.of_bytes()
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
        ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        if len(ranks) != vocab_size - 1:
            raise DataError(
                f"vocabulary: expected {vocab_size} entries, found text for only {len(ranks) + 1}; "
                "give more text or a smaller --vocab-size"
            )
        return cls([bytes(token) for token, _ in ranks], PATTERN)

    @classmethod
    def of_bytes(cls) -> Self:
        """The byte vocabulary: 256 byte values and BOS."""
        return cls([bytes([value]) for value in range(256)], PATTERN)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The tokenizer of a prepared data set."""
        path = folder / "tokenizer.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ranks = [base64.b64decode(token, validate=True) for token in content["mergeable_ranks"]]
            return cls(ranks, content["pattern"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: expected a tokenizer, found {error!r}; run `python prepare.py` again") from error

    def to_json(self) -> str:
        """What `load` reads; the same tokenizer always gives the same text."""
        content = {
            "format": FORMAT,
            "kind": "bytes" if self.vocab_size == BYTES_VOCAB else "bpe",
            "pattern": self._pattern,
            "special_tokens": {BOS: self.bos_id},
            "mergeable_ranks": [base64.b64encode(token).decode("ascii") for token in self._ranks],
        }
        return json.dumps(content, indent=0) + "\n"

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS. The characters of a special token are ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[Tokens]:
        """Token ids of each text, uint16 (n,), each beginning with BOS; tiktoken works outside the interpreter lock."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._document, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """UTF-8 bytes each id stands for, int32 (vocab_size,); 0 for BOS."""
        return np.array([len(token) for token in self._ranks] + [0], dtype=np.int32)

    def _document(self, text: str) -> Tokens:
        ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        document = np.empty(len(ids) + 1, dtype=np.uint16)
        document[0] = self.bos_id
        document[1:] = ids
        return document
