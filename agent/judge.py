"""Facts → verdict, or "run again". Pure."""

from __future__ import annotations

from typing import Protocol

from agent.config import Task
from agent.values import Record, RunAgain, Status, Trial, Verdict


class Judge(Protocol):
    def decide(self, trial: Trial, incumbent: Record | None) -> Verdict | RunAgain:
        """`trial` has at least one run; `incumbent` is None for the baseline."""
        ...


class Greedy:
    """Better than the incumbent by any margin is kept. Simple, and fooled by noise: half of small gains are luck."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def decide(self, trial: Trial, incumbent: Record | None) -> Verdict | RunAgain:
        run = trial.runs[-1]
        if run.metrics is None:
            return Verdict(Status.CRASH, run.failure)
        if incumbent is not None and run.budget != incumbent.budget:
            return Verdict(Status.DISCARD, f"budget {run.budget} is not ranked against {incumbent.budget}")
        if incumbent is None:
            return Verdict(Status.KEEP, "baseline")
        return self._against(run.metrics.val_bpb, incumbent)

    def _against(self, value: float, incumbent: Record) -> Verdict:
        if incumbent.val_bpb is None:
            return Verdict(Status.KEEP, "the incumbent has no number")
        change = f"{value - incumbent.val_bpb:+.6f} against {incumbent.val_bpb:.6f}"
        if self.task.better(value, incumbent.val_bpb):
            return Verdict(Status.KEEP, change)
        return Verdict(Status.DISCARD, change)
