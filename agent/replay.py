"""What a session achieved, recomputed from its ledger alone, anybody's ledger. Pure.

Conventions, those of the field where it has any: every row is an experiment, the baseline's too, and the baseline
counts as kept. The best is the best *kept* value: a better number that was discarded did not survive its judge.
Numbers of crashes and rejects count for nothing. Numbers are ranked only against the baseline's kind (same data,
budget, hardware and torch version); `outside` counts the others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from agent.ledger import comparable, kept
from agent.values import Record, Status

TOP = 5
SIGN = {"min": 1, "max": -1}  # of a gain, which is positive whichever way is better


@dataclass(frozen=True)
class Step:
    """A kept row. row: from 0. gain: how far it went beyond the best before it, in the metric's unit (bits per byte);
    0 for the baseline."""

    row: int
    trial: int
    commit: str | None
    val_bpb: float
    gain: float
    description: str


@dataclass(frozen=True)
class Replay:
    """Counts, the best and how it came to be. None: the ledger does not say.

    other: rows with a status of none of the four kinds. keep_rate: of the trials judged (kept or discarded) after the
    baseline, [0, 1]. gain_per_keep: mean of the keeps after the baseline. longest_plateau: most rows in a row without a
    new best; plateau_from: the first of them. frontier: keeps that set a new best, the baseline first. top_hits: the
    largest gains among these.
    """

    experiments: int
    keep: int
    discard: int
    crash: int
    reject: int
    other: int
    outside: int
    baseline: float | None
    best: float | None
    best_commit: str | None
    best_description: str | None
    improvement: float | None
    keep_rate: float | None
    gain_per_keep: float | None
    longest_plateau: int
    plateau_from: int | None
    hours: float | None
    cost_usd: float | None
    direction: str
    frontier: tuple[Step, ...]
    top_hits: tuple[Step, ...]


def replay(records: Sequence[Record], direction: str = "min") -> Replay:
    """Go through the rows, oldest first. direction: min or max is better."""
    ranked, sign = in_class(records), SIGN[direction]
    steps = _steps(records, ranked, sign)
    frontier = tuple(step for number, step in enumerate(steps) if step.gain > 0 or number == 0)
    first, last = (frontier[0], frontier[-1]) if frontier else (None, None)
    counts = Counter("keep" if kept(record) else record.status for record in records)
    stopped = sum(record.status == Status.DISCARD and record.val_bpb is None for record in records)
    judged = len(steps) - 1 + stopped + sum(record.status == Status.DISCARD for record in ranked)
    plateau, begin = _plateau(len(records), frontier)
    return Replay(
        experiments=len(records),
        keep=counts["keep"],
        discard=counts["discard"],
        crash=counts["crash"],
        reject=counts["reject"],
        other=sum(count for status, count in counts.items() if status not in tuple(Status)),
        outside=len(_numbers(records)) - len(ranked) if ranked else 0,
        baseline=first.val_bpb if first else None,
        best=last.val_bpb if last else None,
        best_commit=last.commit if last else None,
        best_description=last.description if last else None,
        improvement=sign * (first.val_bpb - last.val_bpb) if first and last else None,
        keep_rate=(len(steps) - 1) / judged if judged > 0 else None,
        gain_per_keep=fmean(step.gain for step in steps[1:]) if steps[1:] else None,
        longest_plateau=plateau,
        plateau_from=begin,
        hours=_total([record.total_seconds for record in records], 3600),
        cost_usd=_total([record.cost_usd for record in records], 1),
        direction=direction,
        frontier=frontier,
        top_hits=tuple(sorted(frontier[1:], key=lambda step: -step.gain)[:TOP]),
    )


def in_class(records: Sequence[Record]) -> list[Record]:
    """The rows with a number that may be ranked against the baseline's, which is the first kept row with a number."""
    numbers = _numbers(records)
    first = next((record for record in numbers if kept(record)), None)
    return [record for record in numbers if first and comparable(record, first)]


def _numbers(records: Sequence[Record]) -> list[Record]:
    """The rows whose number was measured and stands."""
    void = (Status.CRASH, Status.REJECT)
    return [record for record in records if record.val_bpb is not None and record.status not in void]


def as_json(result: Replay) -> dict[str, Any]:
    """The same as plain dicts and lists, floats as they are."""
    return asdict(result)


def as_text(result: Replay) -> str:
    """A page for people."""
    counts = ((kind, getattr(result, kind)) for kind in ("keep", "discard", "crash", "reject", "other"))
    lines = [
        f"experiments      {result.experiments}  ({', '.join(f'{count} {kind}' for kind, count in counts if count)})"
    ]
    if result.baseline is not None and result.best is not None and result.improvement is not None:
        lines += [
            f"baseline         {result.baseline:.6f}",
            f"best             {result.best:.6f}  {result.best_commit or ''}  {result.best_description}",
            f"improvement      {result.improvement:.6f}  ({result.improvement / abs(result.baseline):.2%})",
        ]
    if result.keep_rate is not None:
        lines.append(f"keep rate        {result.keep_rate:.1%} of what was judged after the baseline")
    if result.gain_per_keep is not None:
        lines.append(f"gain per keep    {result.gain_per_keep:.6f}")
    if result.plateau_from is not None:
        lines.append(
            f"longest plateau  {result.longest_plateau} rows without a new best, from row {result.plateau_from}"
        )
    if result.hours is not None:
        lines.append(f"hours            {result.hours:.2f}")
    if result.cost_usd is not None:
        lines.append(f"dollars          {result.cost_usd:.2f}")
    if result.outside:
        lines.append(f"not ranked       {result.outside} rows of other data, budget, hardware or torch")
    if result.top_hits:
        hits, frontier = (
            [_line(step, result.direction) for step in steps] for steps in (result.top_hits, result.frontier)
        )
        lines += ["", "top hits", *hits, "", "frontier", *frontier]
    return "\n".join(lines)


def _line(step: Step, direction: str) -> str:
    gain = f"{-SIGN[direction] * step.gain:+.6f}" if step.gain else " " * 9
    return f"  {step.trial:>4}  {step.val_bpb:.6f}  {gain}  {step.description}".rstrip()


def _steps(records: Sequence[Record], ranked: Sequence[Record], sign: int) -> list[Step]:
    """All ranked keeps; the gain of one that set no new best is 0 or less."""
    steps: list[Step] = []
    best, members = sign * math.inf, {id(record) for record in ranked}
    for row, record in enumerate(records):
        if kept(record) and id(record) in members and record.val_bpb is not None:
            gain = sign * (best - record.val_bpb) if steps else 0.0
            trial = row if record.trial is None else record.trial
            steps.append(Step(row, trial, record.commit, record.val_bpb, gain, record.description))
            best = record.val_bpb if sign * (best - record.val_bpb) > 0 else best
    return steps


def _plateau(rows: int, frontier: Sequence[Step]) -> tuple[int, int | None]:
    """Most rows between two steps of the frontier, or behind the last, and the first of them."""
    marks = [step.row for step in frontier] + [rows]
    gaps = [(after - before - 1, before + 1) for before, after in pairwise(marks)]
    length, begin = max(gaps, key=lambda gap: gap[0], default=(0, 0))
    return length, begin if length else None


def _total(values: Sequence[float | None], unit: float) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / unit if known else None
