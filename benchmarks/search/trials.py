"""The recorded trials, a row each, in one parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from agent.values import Run
from benchmarks.search.space import BUDGET, Point

FILE = Path(__file__).parents[1] / "results" / "search_trials.parquet"


@dataclass(frozen=True)
class Row:
    """source: who drew it; number: which of its points. point: knob → value. status: ok, crash or reject, and why.

    change: the edit of code besides, by its name, "" for none. budget: of the run; evolve screens at less.

    seconds: wall, smoke and scoring included. memory_mb: peak. progress, loss: the curve, loss being the mean of the
    training loss since the line before, in nats.
    """

    source: str
    number: int
    point: Point
    seed: int
    hardware: str
    torch: str
    data: str
    change: str = ""
    budget: str = BUDGET
    status: str = "ok"
    reason: str = ""
    val_bpb: float | None = None
    fraction: float = 0.0
    tflop: float | None = None
    steps: int | None = None
    tokens_M: float | None = None
    memory_mb: float | None = None
    train_seconds: float | None = None
    seconds: float = 0.0
    progress: tuple[float, ...] = field(default=())
    loss: tuple[float, ...] = field(default=())

    def failed(self, status: str, reason: str, seconds: float) -> Row:
        return replace(self, status=status, reason=reason, seconds=seconds)

    def ran(self, run: Run, curve: Sequence[Mapping[str, Any]], seconds: float) -> Row:
        """The row with what one run came to. curve: rows of its curve.jsonl."""
        metrics, lines = run.metrics, [line for line in curve if line.get("loss") is not None]
        return replace(
            self,
            status="ok" if metrics else "crash",
            reason=run.failure[:300],
            val_bpb=metrics.val_bpb if metrics else None,
            fraction=run.fraction,
            tflop=run.tflop,
            steps=metrics.num_steps if metrics else None,
            tokens_M=metrics.total_tokens_M if metrics else None,
            memory_mb=metrics.peak_vram_mb if metrics else run.execution.peak_rss_mb,
            train_seconds=metrics.training_seconds if metrics else None,
            seconds=seconds,
            progress=tuple(round(line["progress"], 4) for line in lines),
            loss=tuple(round(line["loss"], 4) for line in lines),
        )


def load(path: Path = FILE) -> list[Row]:
    """Oldest first; [] when there is no file yet."""
    if not path.is_file():
        return []
    rows = pq.read_table(path).to_pylist()
    lists = ("progress", "loss")
    return [Row(**row | {"point": _point(row["point"])} | {name: tuple(row[name]) for name in lists}) for row in rows]


def of_constants(rows: Iterable[Row]) -> list[Row]:
    """Those that changed no code, and that no proposer of ours has chosen: what searches are compared on must not know
    best what one of them looks for."""
    return [row for row in rows if not row.change and not row.source.startswith("session ")]


def save(rows: Sequence[Row], path: Path = FILE) -> None:
    """Aside first: who ends the recording in this moment loses nothing."""
    table = pa.Table.from_pylist([asdict(row) | {"point": json.dumps(row.point)} for row in rows])
    pq.write_table(table, path.with_suffix(".new"), compression="zstd")
    path.with_suffix(".new").replace(path)


def _point(text: str) -> Point:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
