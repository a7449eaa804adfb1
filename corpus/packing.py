"""Rows of tokens from a stream of documents: BOS-aligned, best fit, no padding, the same for the same seed.

Every row begins with BOS and is filled to the last place: the longest waiting piece that still fits goes next, and
when none fits, a piece is cut and its rest waits with a BOS of its own. Nothing is dropped.
Best-fit packing: Ding et al. 2024, https://arxiv.org/abs/2404.10830
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16]

WAITING = 512  # pieces to choose from: enough for a good fit, few enough to stay near the shuffled order


class Packer:
    """Endless rows of one split.

    tokens: (N,) uint16, each document beginning with `bos`; docs: (D + 1,) int64 offsets of the documents;
    piece: longest run of tokens, BOS included, that a document is cut into before shuffling.
    """

    def __init__(self, tokens: Tokens, docs: npt.NDArray[np.int64], *, bos: int, piece: int, seed: int) -> None:
        self.tokens, self.bos, self.seed = tokens, bos, seed
        self.starts, self.lengths = _pieces(docs, piece - 1)
        if not len(self.starts):
            raise ValueError("packing: expected at least one document with a token, found none")
        self.waiting: list[tuple[int, int]] = []  # (tokens without BOS, where they start), sorted
        self.fresh = self._shuffled()

    def batch(self, rows: int, length: int) -> Tokens:
        """(rows, length) uint16."""
        return np.stack([self._row(length) for _ in range(rows)])

    def _row(self, length: int) -> Tokens:
        row = np.empty(length, np.uint16)
        at = 0
        while at < length:
            start, size = self._take(length - at - 1)
            row[at] = self.bos
            row[at + 1 : at + 1 + size] = self.tokens[start : start + size]
            at += 1 + size
        return row

    def _take(self, room: int) -> tuple[int, int]:
        """The longest waiting piece of at most `room` tokens, else the head of the shortest one."""
        while len(self.waiting) < WAITING:
            insort(self.waiting, next(self.fresh))
        best = bisect_right(self.waiting, (room, len(self.tokens)))
        size, start = self.waiting.pop(max(0, best - 1))
        if size > room:
            insort(self.waiting, (size - room, start + room))
            size = room
        return start, size

    def _shuffled(self) -> Iterator[tuple[int, int]]:
        epoch = 0
        while True:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.starts))
            for i in order:
                yield int(self.lengths[i]), int(self.starts[i])
            epoch += 1


def _pieces(docs: npt.NDArray[np.int64], longest: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts and lengths of all pieces, the documents' own BOS left out: (P,) and (P,) int64."""
    first, last = docs[:-1] + 1, docs[1:]
    counts = -(-(last - first) // longest)
    starts = np.repeat(first, counts) + longest * (
        np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    )
    lengths = np.minimum(np.repeat(last, counts) - starts, longest)
    return starts, lengths


def load_packer(folder: Path, split: str, *, bos: int, piece: int, seed: int) -> Packer:
    """Memory-maps `<split>.npy` and `<split>_docs.npy`, so a run starts in no time whatever the size of the data."""
    tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
    docs = np.load(folder / f"{split}_docs.npy")
    return Packer(tokens, docs, bos=bos, piece=piece, seed=seed)
