"""Facts to a verdict, whichever end of the metric is better. What audits leave of a keep: tests/agent/test_audit.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Task
from agent.judge import Greedy, confirm
from agent.values import Audit, Candidate, Proposal, Record, Run, Status, Trial, Verdict
from sandbox.metrics import Metrics
from sandbox.process import Ending, Execution

EXECUTION = Execution(Ending.EXITED, 0, None, 1.0, 10.0, Path("run.log"), 0.0)
METRICS = Metrics(1.0, 1.0, 1.0, 10.0, None, 0.1, 10, 0.1, 1)
INCUMBENT = Record("0" * 7, 1.25, 0.1, "keep", "before", trial=1, budget="10steps")
KEEP = Verdict(Status.KEEP, "better")


def trial(value: float | None, budget: str = "10steps") -> Trial:
    metrics = None if value is None else replace(METRICS, val_bpb=value)
    run = Run(42, budget, EXECUTION, metrics, "" if metrics else "exit 1: ValueError: no")
    return Trial(2, "1" * 40, Candidate(Proposal((), "x"), {}, "0" * 40, "", ""), (run,))


@pytest.mark.parametrize(
    ("direction", "value", "status", "reason"),
    [
        ("min", 1.0, Status.KEEP, "-0.250000 against 1.250000"),
        ("min", 1.25, Status.DISCARD, "+0.000000 against 1.250000"),
        ("min", 1.5, Status.DISCARD, "+0.250000 against 1.250000"),
        ("max", 1.5, Status.KEEP, "+0.250000 against 1.250000"),
        ("max", 1.25, Status.DISCARD, "+0.000000 against 1.250000"),
        ("max", 1.0, Status.DISCARD, "-0.250000 against 1.250000"),
    ],
)
def test_only_what_is_better_is_kept(direction: str, value: float, status: Status, reason: str) -> None:
    assert Greedy(Task(direction=direction)).decide(trial(value), INCUMBENT) == Verdict(status, reason)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_what_cannot_be_compared(direction: str) -> None:
    judge = Greedy(Task(direction=direction))
    assert judge.decide(trial(9.0), None) == Verdict(Status.KEEP, "baseline")
    assert judge.decide(trial(None), None) == Verdict(Status.CRASH, "exit 1: ValueError: no")
    assert judge.decide(trial(None), INCUMBENT) == Verdict(Status.CRASH, "exit 1: ValueError: no")
    bare = replace(INCUMBENT, val_bpb=None)
    assert judge.decide(trial(9.0), bare) == Verdict(Status.KEEP, "the incumbent has no number")
    other = Verdict(Status.DISCARD, "budget 20steps is not ranked against 10steps")
    assert [judge.decide(trial(value, "20steps"), INCUMBENT) for value in (0.1, 9.0)] == [other, other]


@pytest.mark.parametrize(
    ("direction", "held", "status", "change"),
    [
        ("min", 1.4, Status.KEEP, ""),
        ("min", 1.6, Status.DISCARD, "+0.100000"),
        ("max", 1.6, Status.KEEP, ""),
        ("max", 1.4, Status.DISCARD, "-0.100000"),
        ("max", 1.5, Status.DISCARD, "+0.000000"),
    ],
)
def test_a_gain_has_to_show_on_the_held_back_split_in_the_same_direction(
    direction: str, held: float, status: Status, change: str
) -> None:
    audit = Audit(4096, 2.0, 2.0, 1e-6, held)
    verdict = confirm(KEEP, audit, replace(audit, held_bpb=1.5), "cpu", Task(direction=direction))
    lost = Verdict(Status.DISCARD, f"better, but {change} on the held-back split: no gain")
    assert verdict == (KEEP if status is Status.KEEP else lost)
