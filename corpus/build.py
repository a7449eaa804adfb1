"""Makes one prepared data set: text -> splits -> tokenizer -> token files, each step continued after an interruption.

A folder under `<cache>/data/` is finished when it has `meta.json`, which is written last. Format: `docs/data.md`.
"""

import hashlib
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from corpus.documents import SPLITS
from corpus.errors import DataError, Interrupted
from corpus.home import data_id, sha256
from corpus.hub import hub_source
from corpus.local import local_source
from corpus.progress import counted, progress_bar
from corpus.source import Shard, Source
from corpus.stdlib import stdlib_source
from corpus.store import locked, read_json, write_atomically
from corpus.tokenizer import BYTES_VOCAB, MAX_VOCAB, Tokenizer
from corpus.tokens import STATE, Count, tokenise, training_texts

FORMAT = 1
SAMPLE_BYTES = 200_000_000  # of training text that a vocabulary is learned from
FILES = ("tokenizer.json", "token_bytes.npy", *(f"{split}{kind}.npy" for split in SPLITS for kind in ("", "_docs")))


@dataclass(frozen=True)
class Settings:
    """What a data set is made with, apart from its text. `vocab_size` counts BOS; lengths are in tokens."""

    vocab_size: int
    max_seq_len: int
    eval_tokens: int


def prepare_data(
    dataset: str,
    *,
    cache: Path,
    vocab_size: int,
    max_seq_len: int,
    eval_tokens: int,
    shards: int = 10,
    workers: int = 2,
    progress: bool = False,
    endpoint: str | None = None,
) -> Path:
    """The folder of the finished data set, made now if need be; `<cache>/current` names it afterwards.

    `dataset`: "stdlib", "climbmix", "tinystories" or the path of a file or folder. `vocab_size` counts BOS; 256 and 257
    both mean the byte vocabulary, which has 257 entries. `max_seq_len` and `eval_tokens` (tokens) change nothing in the
    token files but belong to the data id. `shards`: training shards of climbmix. `workers`: threads, and downloads at a
    time. Raises DataError (one line); Ctrl-C raises Interrupted, which is one too, and the next call continues.
    """
    settings = _checked(Settings(BYTES_VOCAB if vocab_size == 256 else vocab_size, max_seq_len, eval_tokens))
    try:
        if dataset in ("climbmix", "tinystories"):
            source = hub_source(dataset, cache / "hub", shards, workers, progress, endpoint)
        else:
            source = stdlib_source() if dataset == "stdlib" else local_source(dataset)
        return _prepare(source, settings, cache, workers, progress)
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C; what was finished is kept: run the same command to continue") from None
    except OSError as error:
        found = f"{error.filename or cache}: expected to read and write here, found {error.strerror or error}"
        raise DataError(f"{found}; mend that, then run the same command to continue") from error


def is_finished(folder: Path) -> bool:
    """Whether `meta.json` exists and every file it names has its size: cheap, contents are not read."""
    meta = read_json(folder / "meta.json")
    if meta is None or meta.get("format") != FORMAT:
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in meta["sizes"].items()
    )


def _checked(settings: Settings) -> Settings:
    if not BYTES_VOCAB <= settings.vocab_size <= MAX_VOCAB:
        raise DataError(
            f"vocabulary: expected 256 (bytes) to {MAX_VOCAB} entries, found {settings.vocab_size}; try 1024 or 8192"
        )
    if min(settings.max_seq_len, settings.eval_tokens) < 1:
        raise DataError(
            "expected a positive sequence length and number of evaluation tokens, found "
            f"{settings.max_seq_len} and {settings.eval_tokens}; give positive ones"
        )
    return settings


def _prepare(source: Source, settings: Settings, cache: Path, workers: int, progress: bool) -> Path:
    parts = [FORMAT, source.name, source.identity, settings.vocab_size, settings.max_seq_len, settings.eval_tokens]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    folder = cache / "data" / f"{source.name}-{key}"
    if not is_finished(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not is_finished(folder):  # another process may have made it while this one waited
                _build(source, settings, folder, workers, progress)
    current = cache / "current"
    if not current.exists() or current.read_text(encoding="utf-8").strip() != folder.name:
        write_atomically(current, folder.name + "\n")
    return folder


def _build(source: Source, settings: Settings, folder: Path, workers: int, progress: bool) -> None:
    if (folder / "meta.json").exists():  # it was finished once and is damaged now: nothing in it can be trusted
        for name in ("meta.json", STATE, "tokenizer.json"):
            (folder / name).unlink(missing_ok=True)
    shards = sorted(source.open(), key=lambda shard: SPLITS.index(shard.split or "train"))
    tokenizer = _tokenizer(source, shards, settings, folder, progress)
    counts = tokenise(shards, tokenizer, folder, source.eval_share, workers, progress)
    _check_sizes(source, counts, settings)
    buffer = BytesIO()
    np.save(buffer, tokenizer.token_bytes(), allow_pickle=False)
    write_atomically(folder / "token_bytes.npy", buffer.getvalue())
    _finish(source, tokenizer, counts, settings, folder)


def _tokenizer(source: Source, shards: list[Shard], settings: Settings, folder: Path, progress: bool) -> Tokenizer:
    """The one already in the folder, or one learned from training text and saved there."""
    if not (folder / "tokenizer.json").exists():
        with progress_bar(progress, total=None, what="vocabulary", unit="B") as bar:
            texts = training_texts(shards, source.eval_share, SAMPLE_BYTES)
            tokenizer = Tokenizer.train(counted(texts, bar), settings.vocab_size)
        write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    return Tokenizer.load(folder)


def _check_sizes(source: Source, counts: dict[str, Count], settings: Settings) -> None:
    for split in SPLITS:
        if counts[split].tokens <= settings.max_seq_len:
            raise DataError(
                f"{source.name}: expected more than {settings.max_seq_len} tokens in split {split}, found "
                f"{counts[split].tokens} in {counts[split].documents} documents; give more text or a shorter sequence"
            )


def _finish(source: Source, tokenizer: Tokenizer, counts: dict[str, Count], settings: Settings, folder: Path) -> None:
    """Writes `meta.json`, which makes the folder finished, and drops what only the building needed."""
    hashes = {name: sha256(folder / name) for name in sorted(FILES)}
    meta = {
        "format": FORMAT,
        "dataset": source.name,
        "data_id": data_id(hashes, settings.max_seq_len, settings.eval_tokens),
    }
    meta |= {"vocab_size": tokenizer.vocab_size, "bos_id": tokenizer.bos_id}
    meta |= {"max_seq_len": settings.max_seq_len, "eval_tokens": settings.eval_tokens}
    meta |= {f"{split}_tokens": counts[split].tokens for split in SPLITS}
    meta |= {"documents": {split: counts[split].documents for split in SPLITS}}
    meta |= {"bytes": {split: counts[split].bytes for split in SPLITS}}
    meta |= {"files": hashes, "sizes": {name: (folder / name).stat().st_size for name in hashes}}
    write_atomically(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    for name in (STATE, "digests.npy"):
        (folder / name).unlink(missing_ok=True)
