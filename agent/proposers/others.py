"""What is known of the constants' space from trials that this search did not propose. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.constants import Value, find
from agent.experience import Experience
from agent.proposers.axis import Axis
from agent.proposers.room import predicted
from agent.values import History, Status

NAME = "knobs"
NEWEST = 200  # trials that are learned from
FIRST = 3  # points of other sessions that are tried as they are, the best first
MORE = 1.1  # of the memory there is, that a trial which ran out of it would have taken, at least
OOM = "out of memory"  # how the reason of such a crash begins


class Others:
    """points: (session and trial, Optuna's parameters, ratio to its session's baseline or None for a failure), oldest
    first: those whose constants are the present ones, each in its range."""

    def __init__(self, known: Iterable[Experience], axes: Sequence[Axis], device: str, tag: str) -> None:
        self._axes, self._tag = axes, tag
        found = [(one, values) for one in known if (values := _values(one.source, axes, device)) is not None]
        self._found = found[-NEWEST:]
        own = [(one, values) for one, values in self._found if not (one.tag == tag and one.record.proposer == NAME)]
        self.points = [
            (f"{one.tag}/{one.record.trial}", self._params(values), one.ratio)
            for one, values in own
            if one.record.trial != 0 and one.record.status != Status.REJECT and (one.ratio or not _stopped(one))
        ]

    def better(self, history: History) -> list[dict[str, Any]]:
        """Of other sessions: the best points, where by their ratio they would beat the incumbent. Lower is better."""
        base = history.records[0].val_bpb if history.records else None
        now = history.incumbent.val_bpb if history.incumbent else None
        if base is None or now is None or history.direction != "min":
            return []
        there = [(one.ratio, values) for one, values in self._found if one.tag != self._tag and one.ratio is not None]
        best = sorted((pair for pair in there if pair[0] < now / base), key=lambda pair: pair[0])
        return [self._params(values) for _, values in best[:FIRST]]

    def fits(self, point: Mapping[str, Value], room_gb: float) -> bool:
        """Whether it is not predicted to take more memory than there is. A trial that ran out took more than that."""
        if math.isinf(room_gb):
            return True
        took = [max(one.record.memory_gb or 0.0, MORE * room_gb if _ran_out(one) else 0.0) for one, _ in self._found]
        guess = predicted([(values, memory) for (_, values), memory in zip(self._found, took, strict=True)], point)
        return guess is None or guess <= room_gb

    def _params(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {axis.key: axis.encode(values[axis.name]) for axis in self._axes}


def _values(source: str, axes: Sequence[Axis], device: str) -> dict[str, Value] | None:
    """The constants of these axes; None where one is missing or out of its range."""
    try:
        there = {constant.name: constant.value for constant in find(source, device)}
    except SyntaxError:
        return None
    values = {axis.name: there[axis.name] for axis in axes if axis.name in there and axis.holds(there[axis.name])}
    return values if len(values) == len(axes) else None


def _ran_out(one: Experience) -> bool:
    return one.record.status == Status.CRASH and one.record.reason.startswith(OOM)


def _stopped(one: Experience) -> bool:
    """Ended early: no failure, and no score."""
    return one.record.status == Status.DISCARD and one.ratio is None
