"""The two processes that own data and clock: the feeder of a training run, and the referee of a scoring run.

    python -m corpus.serve feed SPEC.json      python -m corpus.serve referee SPEC.json

Each talks over one socket (the inherited descriptor `fd` of SPEC) to a process that sees no data file, only the batches
streamed to it. Requests are JSON; token batches and nats travel as raw little-endian arrays. What was measured is
written to `result` when the other side hangs up.

SPEC: data (folder), fd, result (path or null), and for feed: budget, seed, flop_per_token; for referee: split.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from corpus.budget import Allowance, Budget, Clock
from corpus.packing import Packer, Tokens, load_packer

SCORE_TOKENS = 1 << 15  # of one scoring batch
TRAIN_ROWS_LIMIT = 1 << 24  # tokens in one request; a larger one is a mistake, and would only exhaust memory


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


class Feeder:
    """Answers one training process: hello, warmup, next, measured, sealed."""

    def __init__(self, data: Data, spec: dict[str, Any]) -> None:
        self.data, self.spec = data, spec
        self.packer = data.packer("train", spec["seed"])
        self.noise = np.random.default_rng(spec["seed"])
        self.clock = Clock(Budget.parse(spec["budget"]), Allowance(), spec.get("flop_per_token"))

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], Tokens | None]:
        match request["op"]:
            case "hello":
                return self.data.facts() | {"count_flop": self._count_flop()}, None
            case "warmup":
                rows, length = _shape(request)
                self.clock.warm(rows * length)
                return {}, self.noise.integers(self.data.meta["vocab_size"], size=(rows, length + 1), dtype=np.uint16)
            case "next":
                rows, length = _shape(request)
                if not self.clock.draw(rows * length):
                    return self._facts(), None
                return self._facts(), self.packer.batch(rows, length + 1)
            case "measured":
                if self.clock.flop_per_token is None:
                    self.clock.flop_per_token = float(request["flop_per_token"])
            case "sealed":
                self.clock.seal()
        return self._facts(), None

    def _count_flop(self) -> bool:
        return self.clock.flop_per_token is None and (self.clock.budget.unit == "flop" or self.spec.get("smoke", False))

    def _facts(self) -> dict[str, Any]:
        clock = self.clock
        flop = None if clock.flop_per_token is None else clock.flop_per_token * clock.tokens
        return {
            "progress": clock.progress(),
            "seconds": clock.seconds(),
            "tokens": clock.tokens,
            "steps": clock.steps,
            "flop": flop,
        }

    def result(self) -> dict[str, Any]:
        clock = self.clock
        late = None if clock.sealed is None or clock.ended is None else clock.sealed - clock.ended
        return self._facts() | {
            "flop_per_token": clock.flop_per_token,
            "warm_tokens": clock.warm_tokens,
            "startup_seconds": None if clock.started is None else clock.started - clock.opened,
            "sealed_after": late,
            "deadline": clock.budget.deadline(clock.seconds()),
        }


def _shape(request: dict[str, Any]) -> tuple[int, int]:
    rows, length = int(request["B"]), int(request["T"])
    if not (rows > 0 and length > 0 and rows * (length + 1) <= TRAIN_ROWS_LIMIT):
        raise ValueError(f"feed: expected 0 < B·T <= {TRAIN_ROWS_LIMIT}, found B={rows}, T={length}")
    return rows, length


def feed(link: Connection, data: Data, spec: dict[str, Any]) -> dict[str, Any]:
    feeder = Feeder(data, spec)
    while (request := _receive(link)) is not None:
        try:
            facts, tokens = feeder.answer(json.loads(request))
        except (ValueError, KeyError, TypeError) as error:
            facts, tokens = {"error": str(error)}, None
        try:
            _send(link, facts, tokens)
        except (BrokenPipeError, ConnectionResetError):
            break
    return feeder.result()


def referee(link: Connection, data: Data, spec: dict[str, Any]) -> dict[str, Any]:
    """Stream validation rows, sum the nats that come back, divide by the bytes of the tokens they belong to.

    Special tokens count in neither. Raises nothing: what is wrong with the answers is in the result's `error`.
    """
    token_bytes = np.load(data.folder / "token_bytes.npy")
    length = data.meta["max_seq_len"]
    rows = max(1, SCORE_TOKENS // length)
    packer = data.packer(spec.get("split", "val"), seed=0)
    left = max(1, min(data.meta["eval_tokens"], data.meta["val_tokens"]) // length)
    total = {"nats": 0.0, "bytes": 0, "rows": 0}
    while left:
        batch = packer.batch(min(rows, left), length + 1)
        _send(link, {"left": left}, batch)
        answer = _receive(link)
        if answer is None:  # it hung up, and its own log says why
            return dict(total)
        if len(answer) != 4 * batch[:, 1:].size:
            return total | {"error": f"scoring: expected {4 * batch[:, 1:].size} bytes of nats, found {len(answer)}"}
        nats = np.frombuffer(answer, "<f4").reshape(len(batch), length).astype(np.float64)
        weights = token_bytes[batch[:, 1:]]
        if not (np.isfinite(nats).all() and (nats >= -1e-4).all()):
            return total | {"error": "scoring: expected finite nats >= 0, found others"}
        total["nats"] += float(nats[weights > 0].sum())
        total["bytes"] += int(weights.sum())
        total["rows"] += len(batch)
        left -= len(batch)
    bpb = total["nats"] / total["bytes"] / math.log(2)
    _send(link, {"left": 0} | ({"val_bpb": bpb} if spec.get("tell") else {}), None)
    notes = _receive(link)
    return total | {"val_bpb": bpb} | (json.loads(notes) if notes else {})


def _receive(link: Connection) -> bytes | None:
    try:
        return link.recv_bytes()
    except (EOFError, ConnectionResetError):
        return None


def _send(link: Connection, facts: dict[str, Any], tokens: Tokens | None) -> None:
    link.send_bytes(json.dumps(facts | {"shape": None if tokens is None else tokens.shape}).encode())
    if tokens is not None:
        link.send_bytes(tokens.astype("<u2", copy=False).tobytes())


def main() -> None:
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    link = Connection(spec["fd"])
    data = Data.load(Path(spec["data"]))
    try:
        result = {"feed": feed, "referee": referee}[role](link, data, spec)
    except (BrokenPipeError, ConnectionResetError):
        result = {}
    if spec.get("result"):
        aside = Path(spec["result"] + ".part")
        aside.write_text(json.dumps(result))
        aside.replace(spec["result"])


if __name__ == "__main__":
    main()
