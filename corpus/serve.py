"""The trusted processes that own data, clock and score: the feeder of a training run, referee and auditor of its model.

    python -m corpus.serve feed|referee|audit SPEC

Each talks over one socket (the inherited descriptor `fd` of SPEC) to a process that sees no data file, only the batches
streamed to it. What was measured is written to `result` when the other side hangs up. None of them ever runs or reads
code of a candidate; of what it sends they keep numbers, and bytes of bounded size.

SPEC, as JSON: data (folder), fd, result (path or null); for feed: budget, seed, flop_per_token, checkpoint and curve
(paths or null); for the others see corpus.scoring.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from corpus.budget import Allowance, Budget, Clock
from corpus.home import sha256
from corpus.packing import Tokens
from corpus.scoring import Data, audit, referee
from corpus.wire import MAX_REQUEST, count, receive, send

CHECKPOINT_LIMIT = 16 << 30  # bytes
CHUNK_LIMIT = 1 << 25  # bytes of a checkpoint in one message
FULL = 1 << 30  # bytes free, below which it is the disk's fault, not the model's, that a checkpoint does not fit
CURVE_BYTES = 64 << 20
MAX_OPENINGS = 200  # brackets in the description of a model; bounds how deep it is nested
TRAIN_ROWS_LIMIT = 1 << 24  # tokens in one request; a larger one is a mistake, and would only exhaust memory


class Feeder:
    """Answers one training process: hello, warmup, started, next, log, measured, rehearsed, seal."""

    def __init__(self, data: Data, spec: dict[str, Any]) -> None:
        self.data, self.spec = data, spec
        self.packer = data.packer("train", spec["seed"])
        self.noise = np.random.default_rng(spec["seed"])
        self.logged = 0  # bytes
        self.described: Any = None
        self.rehearsed: dict[str, float | None] = {}
        self.startup_flop: float | None = None
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
                    self.clock.flop_per_token = count(request["flop_per_token"])
            case "started":
                self.startup_flop = count(request["startup_flop"] or 1)  # one that computes nothing is told of, too
            case "rehearsed":
                self.rehearsed = _rehearsed(request, self.spec.get("shapes", False))
            case "log":
                self._log(request["row"])
            case other:
                raise ValueError(f"feed: expected a known question, found {other!r:.40}")
        return self._facts(), None

    def seal(self, request: dict[str, Any], chunks: Iterator[bytes]) -> tuple[dict[str, Any], None]:
        """Take the checkpoint: the first one counts, written whole or not at all, and the clock stops behind it."""
        if self.clock.sealed is not None:
            raise ValueError("seal: expected one checkpoint of a run, found a second")
        described, size = request["config"], int(request["bytes"])
        text = json.dumps(described)
        if text.count("[") + text.count("{") > MAX_OPENINGS:
            raise ValueError(f"seal: expected a config with at most {MAX_OPENINGS} lists and dicts, found more")
        _receive_file(self.spec.get("checkpoint"), size, chunks)
        self.described = described
        self.clock.seal()
        return self._facts(), None

    def _log(self, row: dict[str, Any]) -> None:
        """Numbers only, and so many: what is written is read by people and shown to models."""
        numbers = {name[:40]: value for name, value in row.items() if isinstance(value, int | float)}
        line = json.dumps({name: value if math.isfinite(value) else None for name, value in numbers.items()}) + "\n"
        self.logged += len(line)
        if self.spec.get("curve") and self.logged <= CURVE_BYTES:
            with Path(self.spec["curve"]).open("a") as curve:
                curve.write(line)

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
            "described": self.described,
            "startup_flop": self.startup_flop,
            "deadline": clock.budget.deadline(clock.seconds()),
            "sha256": sha256(Path(self.spec["checkpoint"])) if self.described and self.spec.get("checkpoint") else None,
            **self.rehearsed,
        }


def _rehearsed(request: dict[str, Any], shapes: bool) -> dict[str, float | None]:
    """FLOPs of a forward pass. With shapes only, which is ours to say, also MiB held; either may be unknown."""
    if not shapes:
        return {"forward_flop_per_token": count(request["forward_flop_per_token"])}
    told = [name for name in ("forward_flop_per_token", "shapes_mb") if name in request]
    return {name: None if request[name] is None else count(request[name]) for name in told}


def _receive_file(path: str | None, size: int, chunks: Iterator[bytes]) -> None:
    """`size` bytes into `path`, whole or not at all; None drops them.

    Raise ValueError for more or fewer, or more than the disk should take; OSError where that is the disk's fault.
    """
    free = shutil.disk_usage(Path(path).parent).free if path else 2 * CHECKPOINT_LIMIT
    limit = min(CHECKPOINT_LIMIT, free // 2)  # half of the disk stays free for others
    if limit < size <= CHECKPOINT_LIMIT and free < FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if not 0 <= size <= limit:
        raise ValueError(f"seal: expected at most {limit} bytes, found {size}")
    aside, received = Path(f"{path}.part" if path else os.devnull), 0
    try:
        with aside.open("wb") as file:
            while received < size:
                received += file.write(next(chunks))
        if received != size:
            raise ValueError(f"seal: expected {size} bytes, found {received}")
        if path:
            aside.replace(path)
    finally:
        if path:
            aside.unlink(missing_ok=True)


def _shape(request: dict[str, Any]) -> tuple[int, int]:
    rows, length = int(request["B"]), int(request["T"])
    if not (rows > 0 and length > 0 and rows * (length + 1) <= TRAIN_ROWS_LIMIT):
        raise ValueError(f"feed: expected 0 < B·T <= {TRAIN_ROWS_LIMIT}, found B={rows}, T={length}")
    return rows, length


def feed(link: Connection, data: Data, spec: dict[str, Any]) -> dict[str, Any]:
    feeder = Feeder(data, spec)
    try:
        while (message := receive(link, MAX_REQUEST)) is not None:
            try:
                request = json.loads(message)
                sealing = request["op"] == "seal"
                facts, tokens = feeder.seal(request, _chunks(link)) if sealing else feeder.answer(request)
            except OSError:  # a full disk ends the session, not this run
                raise
            except Exception as error:  # whatever it sent: it is the run that has to end, and nothing else
                said = str(error) if isinstance(error, ValueError) else type(error).__name__
                facts, tokens = {"error": said if said.startswith(("feed:", "seal:")) else f"feed: {said}"}, None
            send(link, facts, tokens)
    except (BrokenPipeError, ConnectionResetError, ValueError):  # gone, or too long a message to go on behind
        pass
    return feeder.result()


def _chunks(link: Connection) -> Iterator[bytes]:
    while (chunk := receive(link, CHUNK_LIMIT)) is not None:
        yield chunk
    raise ValueError("seal: expected the whole checkpoint, found its end too early")


def main() -> None:
    role, spec = sys.argv[1], json.loads(sys.argv[2])
    link = Connection(spec["fd"])
    data = Data.load(Path(spec["data"]))
    try:
        result = {"feed": feed, "referee": referee, "audit": audit}[role](link, data, spec)
    except (BrokenPipeError, ConnectionResetError):
        result = {}
    if spec.get("result"):
        aside = Path(spec["result"] + ".part")
        aside.write_text(json.dumps(result))
        aside.replace(spec["result"])


if __name__ == "__main__":
    main()
