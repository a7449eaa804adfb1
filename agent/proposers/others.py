"""What is known of the constants' space from the rows and sources of trials, whoever proposed them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from agent.constants import Value, find
from agent.errors import PatchError
from agent.experience import Experience
from agent.proposers.axis import Axis
from agent.proposers.point import digest, skeleton
from agent.proposers.room import predicted
from agent.values import History, Record, Status

NEWEST = 200  # trials that are learned from
MORE = 1.1  # of the memory there is, that a trial which ran out of it would have taken, at least
TARGET = "train.py"  # under which name an edit is undone; any would do
OOM = "out of memory"  # how the reason of such a crash begins


class Others:
    """points: (session and trial, digest of the source, Optuna's parameters, ratio to its session's baseline or None
    for a failure), oldest first. Of code like the present one in all but its constants: other code says little of them.
    What this search proposed in the session is there, too: a kill may have come between a row and its telling."""

    def __init__(self, known: Iterable[Experience], source: str, axes: Sequence[Axis], device: str, tag: str) -> None:
        self._axes, self._tag = axes, tag
        names = tuple(axis.name for axis in axes)
        here = _taken_apart(source, device, names)
        apart = [(one, _taken_apart(one.source, device, names)) for one in list(known)[-NEWEST:]]
        alike = [
            (one, found[1]) for one, found in apart if found is not None and here is not None and found[0] == here[0]
        ]
        self._found = [(one, values) for one, values in alike if all(axis.holds(values[axis.name]) for axis in axes)]
        self.points = [
            (self._place(one), digest(one.source), self._params(values), one.ratio)
            for one, values in self._found
            if self._counts(one.record)
        ]

    def better(self, history: History) -> list[tuple[str, dict[str, Any]]]:
        """Of other sessions: the best points and where they are from, where by their ratio they would beat the
        incumbent. Lower is better."""
        base = history.records[0].val_bpb if history.records else None
        now = history.incumbent.val_bpb if history.incumbent else None
        if base is None or now is None or history.direction != "min":
            return []
        there = [
            (one.ratio, one, values) for one, values in self._found if one.tag != self._tag and one.ratio is not None
        ]
        best = sorted((found for found in there if found[0] < now / base), key=lambda found: found[0])
        return [(self._place(one), self._params(values)) for _, one, values in best]

    def fits(self, point: Mapping[str, Value], room_gb: float) -> bool:
        """Whether it is not predicted to take more memory than there is. A trial that ran out took more than that."""
        if math.isinf(room_gb):
            return True
        took = [(values, MORE * room_gb) for one, values in self._found if _ran_out(one.record)]
        took += [(values, one.record.memory_gb or 0.0) for one, values in self._found if one.ratio is not None]
        guess = predicted(took, point)
        return guess is None or guess <= room_gb

    @staticmethod
    def _place(one: Experience) -> str:
        return f"{one.tag}/{one.record.trial}"

    @staticmethod
    def _counts(record: Record) -> bool:
        """A score or a failure of the constants; what was ended early is neither."""
        ran = record.trial != 0 and record.status != Status.REJECT
        return ran and (record.val_bpb is not None or record.status == Status.CRASH)

    def _params(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {axis.key: axis.encode(values[axis.name]) for axis in self._axes}


@lru_cache(maxsize=1024)
def _taken_apart(source: str, device: str, names: tuple[str, ...]) -> tuple[str, dict[str, Value]] | None:
    """A hash of the code without these constants, and their values; None where one is missing."""
    try:
        there = {constant.name: constant.value for constant in find(source, device)}
        return skeleton(TARGET, source, device, names), {name: there[name] for name in names}
    except (SyntaxError, ValueError, KeyError, PatchError):
        return None


def _ran_out(record: Record) -> bool:
    return record.status == Status.CRASH and record.reason.startswith(OOM)
