"""What a model is worth, and whether that is true: the referee sums its nats, the auditor asks it blindly.

Both sides speak prepare.py's dialogue: rows go out, and nats of every token come back (referee), or the logits of one
position of each row (auditor). The auditor shows each row only up to that position: all behind it is of another
document, from the training text. A model that looks ahead, across rows or across calls, or nats that were made up,
give themselves away there, because the answer is looked up in logits that were made without the chance to know it.

SPEC of the referee: split (val or held), nats (path to keep them at, or null). SPEC of the auditor: split, nats, seed,
probes (how many questions).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus.packing import Packer, Tokens, load_packer
from corpus.wire import MAX_REQUEST, count, receive, send

SCORE_TOKENS = 1 << 15  # of one batch

Nats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """A prepared data set as the serving side sees it."""

    folder: Path
    meta: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Data:
        return cls(folder, json.loads((folder / "meta.json").read_text()))

    def packer(self, split: str, seed: int) -> Packer:
        return load_packer(self.folder, split, bos=self.meta["bos_id"], piece=self.meta["max_seq_len"] + 1, seed=seed)

    def facts(self) -> dict[str, Any]:
        return {key: self.meta[key] for key in ("vocab_size", "max_seq_len", "bos_id", "data_id")}

    def rows(self, split: str) -> Tokens:
        """(N, T + 1): all rows of a validation split that are scored, always the same ones in the same order."""
        length = self.meta["max_seq_len"]
        count = max(1, min(self.meta["eval_tokens"], self.meta[f"{split}_tokens"]) // length)
        return self.packer(split, seed=0).batch(count, length + 1)

    def token_bytes(self) -> npt.NDArray[Any]:
        """(V,): bytes of each token, 0 for the special ones, which do not count."""
        table: npt.NDArray[Any] = np.load(self.folder / "token_bytes.npy")
        return table


def batches(count: int, length: int) -> list[slice]:
    size = max(1, SCORE_TOKENS // length)
    return [slice(start, min(count, start + size)) for start in range(0, count, size)]


def referee(link: Connection, data: Data, spec: dict[str, Any]) -> dict[str, Any]:
    """Bits per byte of a split. Raises nothing: what is wrong with the answers is in the result's `error`."""
    rows, total = data.rows(spec.get("split", "val")), {"nats": 0.0, "bytes": 0, "rows": 0}
    kept: list[Nats] = []
    for part in batches(len(rows), rows.shape[1] - 1):
        batch = rows[part]
        send(link, {"left": len(rows) - part.start}, batch)
        try:
            nats = _numbers(link, (len(batch), batch.shape[1] - 1))
        except ValueError as error:
            return total | {"error": f"scoring: {error}"}
        if nats is None:  # it hung up, and its own log says why
            return dict(total)
        weights = data.token_bytes()[batch[:, 1:]]
        counted = nats[weights > 0]  # a model may hold a special token for impossible: those do not count
        if not (np.isfinite(counted) & (counted >= -1e-4)).all():
            return total | {"error": "scoring: expected finite nats >= 0, found others"}
        total["nats"] += float(counted.sum(dtype=np.float64))
        total["bytes"] += int(weights.sum())
        total["rows"] += len(batch)
        kept.append(nats)
    bpb = total["nats"] / total["bytes"] / math.log(2)
    send(link, {"left": 0} | ({"val_bpb": bpb} if spec.get("tell") else {}), None)
    if spec.get("nats"):
        np.save(spec["nats"], np.concatenate(kept))
    return total | {"val_bpb": bpb} | _notes(link)


def audit(link: Connection, data: Data, spec: dict[str, Any]) -> dict[str, Any]:
    """Compare what was scored with what the model says blindly, at `probes` places.

    Results: probes; scored, blind: mean nats at those places; worst, the largest difference of both; `error`.
    """
    rows, scored, probes = data.rows(spec["split"]), np.load(spec["nats"]), int(spec["probes"])
    draw = np.random.default_rng(spec["seed"])
    row, place = _places(rows, data.token_bytes(), probes, draw)
    other = data.packer("train", seed=int(draw.integers(1 << 31))).batch(probes, rows.shape[1])
    shown = np.where(np.arange(rows.shape[1]) > place[:, None], other, rows[row])
    answers: list[npt.NDArray[np.float64]] = []
    for part in batches(probes, rows.shape[1] - 1):
        send(link, {"left": probes - part.start, "at": place[part].tolist()}, shown[part])
        try:
            logits = _numbers(link, (len(shown[part]), data.meta["vocab_size"]))
        except ValueError as error:
            return {"error": f"audit: {error}"}
        if logits is None:
            return {}
        if np.isnan(logits).any() or np.isposinf(logits).any():
            return {"error": "audit: expected logits that are numbers, found others"}
        answers.append(_nats(logits, rows[row[part], place[part] + 1]))
    send(link, {"left": 0}, None)
    blind, seen = np.concatenate(answers), scored[row, place].astype(np.float64)
    means = {"scored": float(seen.mean()), "blind": float(blind.mean())}
    return {"probes": probes, "worst": float(np.abs(blind - seen).max()), **means} | _notes(link)


def _places(rows: Tokens, token_bytes: npt.NDArray[Any], probes: int, draw: np.random.Generator) -> tuple[Any, Any]:
    """`probes` rows by number, each about equally often, and in each a position whose next token counts in the score.

    In ascending order of position. A row that is asked about twice shows at the later position what followed the
    earlier one; the other way round a model that remembers rows could look the answer up.
    """
    row = np.concatenate([draw.permutation(len(rows)) for _ in range(-(-probes // len(rows)))])[:probes]
    counts = token_bytes[rows[:, 1:]] > 0
    place = np.array([draw.choice(np.flatnonzero(counts[n])) for n in row])
    order = np.argsort(place, kind="stable")
    return row[order], place[order]


def _nats(logits: Nats, targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(B, V), (B,) -> (B,): −log softmax at the target."""
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    nats: npt.NDArray[np.float64] = np.log(np.exp(wide).sum(1)) - wide[np.arange(len(wide)), targets]
    return nats


def _numbers(link: Connection, shape: tuple[int, int]) -> Nats | None:
    """float32 of this shape; None when nobody answers. ValueError for anything else."""
    size = 4 * shape[0] * shape[1]
    answer = receive(link, size)
    if answer is None:
        return None
    if len(answer) != size:
        raise ValueError(f"expected {size} bytes, found fewer")
    return np.frombuffer(answer, "<f4").reshape(shape)


def _notes(link: Connection) -> dict[str, Any]:
    """What the run says of itself at the end: FLOPs per token of its forward pass."""
    try:
        notes = json.loads(receive(link, MAX_REQUEST) or b"")
        return {"forward_flop_per_token": count(notes["forward_flop_per_token"])}
    except Exception:  # whatever it sent: without the number there is none
        return {}
