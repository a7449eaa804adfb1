"""Documents to token files: shard by shard, in bounded memory, continued where an interruption left it.

A checkpoint syncs the growing files and then records how much of them counts. Whatever was appended after the last
checkpoint is dropped by the next run and made again, so an interrupted build ends in the same bytes as any other.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corpus.documents import SPLITS, digest, split_by_digest
from corpus.progress import progress_bar
from corpus.source import Shard
from corpus.store import GrowingArray, closing_all, read_json, write_atomically
from corpus.tokenizer import Tokenizer

BATCH_CHARS = 4_000_000  # of text in memory and with the encoder at a time
CHECKPOINT_CHARS = 32_000_000  # of text that an interruption may cost, plus the shard it falls into
STATE = "progress.json"


@dataclass
class Count:
    """What a split holds: documents, tokens with BOS, UTF-8 bytes of text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class Work:
    """What is done: whole shards, the splits' sizes at that point, and the evaluation digests recorded."""

    started: bool = False
    shards: int = 0
    digests: int = 0
    counts: dict[str, Count] = field(default_factory=lambda: {split: Count() for split in SPLITS})

    @classmethod
    def load(cls, folder: Path) -> "Work":
        """The state of an interrupted build, or the start of a new one."""
        state = read_json(folder / STATE)
        if state is None:
            return cls()
        counts = {split: Count(**state["counts"][split]) for split in SPLITS}
        return cls(True, state["shards"], state["digests"], counts)

    def save(self, folder: Path) -> None:
        """Readable by `load` from the moment this returns."""
        write_atomically(folder / STATE, json.dumps(asdict(self), indent=1) + "\n")


def training_texts(shards: list[Shard], eval_share: float, limit: int) -> Iterator[str]:
    """Training documents in order, up to `limit` bytes of them: what a vocabulary may be learned from."""
    taken = 0
    for shard in shards:
        if shard.split in (None, "train"):
            for text in shard.read():
                if taken >= limit:
                    return
                if shard.split == "train" or split_by_digest(digest(text), eval_share) == "train":
                    taken += len(text.encode("utf-8"))
                    yield text


def tokenise(
    shards: list[Shard], tokenizer: Tokenizer, folder: Path, eval_share: float, threads: int, progress: bool
) -> dict[str, Count]:
    """Writes `<split>.npy` and `<split>_docs.npy` for every split; shards come in the order val, held, train.

    A document that repeats one of val or held (white space aside) is left out wherever it comes up again.
    """
    writer = _Writer(tokenizer, folder, eval_share, threads)
    with writer.closing(), progress_bar(progress, total=len(shards), what="tokenise", unit="shard") as bar:
        bar.update(writer.work.shards)
        for shard in shards[writer.work.shards :]:
            writer.add(shard)
            bar.update()
        writer.checkpoint()
    return writer.work.counts


class _Writer:
    """The files of one data set, open for appending."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, eval_share: float, threads: int) -> None:
        self._tokenizer, self._folder, self._share, self._threads = tokenizer, folder, eval_share, threads
        self.work = Work.load(folder)
        counts = self.work.counts
        self._tokens = {s: GrowingArray(folder / f"{s}.npy", "<u2", counts[s].tokens) for s in SPLITS}
        ends = {s: counts[s].documents + 1 if self.work.started else 0 for s in SPLITS}
        self._docs = {s: GrowingArray(folder / f"{s}_docs.npy", "<i8", ends[s]) for s in SPLITS}
        self._digests = GrowingArray(folder / "digests.npy", "<u8", self.work.digests)
        self._seen = {int(value) for value in np.load(folder / "digests.npy")}
        self._unsaved = 0
        if not self.work.started:
            self._start()

    def _start(self) -> None:
        for array in self._docs.values():
            array.append(np.zeros(1, np.int64))
        self.work.started = True
        self.checkpoint()

    def closing(self) -> Any:
        """Context that closes every file."""
        return closing_all(self._arrays())

    def add(self, shard: Shard) -> None:
        """Appends the shard's documents, and checkpoints when enough has come together."""
        for batch in self._batches(shard):
            encoded = self._tokenizer.encode_batch([text for _, text in batch], self._threads)
            for split in SPLITS:
                self._append(split, [(text, ids) for (s, text), ids in zip(batch, encoded, strict=True) if s == split])
        self.work.shards += 1
        if self._unsaved >= CHECKPOINT_CHARS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Everything so far survives from here on."""
        for array in self._arrays():
            array.sync()
        self.work.digests = self._digests.count
        self.work.save(self._folder)
        self._unsaved = 0

    def _batches(self, shard: Shard) -> Iterator[list[tuple[str, str]]]:
        """(split, text) of the documents that are to be kept, in lists of about BATCH_CHARS."""
        batch: list[tuple[str, str]] = []
        size = 0
        for text in shard.read():
            split = self._placed(shard, text)
            if split:
                batch.append((split, text))
                size += len(text)
            if size >= BATCH_CHARS:
                yield batch
                batch, size = [], 0
        yield batch

    def _placed(self, shard: Shard, text: str) -> str | None:
        """The split a document goes to; None for an empty one or one that evaluation already has."""
        value = digest(text)
        if not text.strip() or value in self._seen:
            return None
        split = shard.split or split_by_digest(value, self._share)
        if split != "train":
            self._seen.add(value)
            self._digests.append(np.array([value], np.uint64))
        return split

    def _append(self, split: str, documents: list[tuple[str, Any]]) -> None:
        if documents:
            count = self.work.counts[split]
            ends = count.tokens + np.cumsum([len(ids) for _, ids in documents], dtype=np.int64)
            self._tokens[split].append(np.concatenate([ids for _, ids in documents]))
            self._docs[split].append(ends)
            count.documents += len(documents)
            count.tokens = int(ends[-1])
            count.bytes += sum(len(text.encode("utf-8")) for text, _ in documents)
            self._unsaved += sum(len(text) for text, _ in documents)

    def _arrays(self) -> list[GrowingArray]:
        return [*self._tokens.values(), *self._docs.values(), self._digests]
