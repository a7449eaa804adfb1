"""Facts → verdict, or "run again". Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from agent.config import Task
from agent.values import Audit, Record, RunAgain, Status, Trial, Verdict

# What a blind answer may differ from the scored one, in nats: the largest difference, and the mean with its sign. On a
# CPU measured, in float32 and bfloat16, at 1e-6 and 1e-8 (docs/bench.md); on GPUs a guess from bfloat16's rounding,
# until somebody measures it.
TOLERANCE = {"cpu": (0.001, 0.000002), "cuda": (0.25, 0.005), "mps": (0.25, 0.005)}


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


def confirm(keep: Verdict, audit: Audit, before: Audit | None, device: str, task: Task) -> Verdict:
    """What an audit leaves of a keep. before: the incumbent's audit, None for the baseline.

    Answers that differ are a reject, with both numbers. A gain that lives on the split that scores and not on the one
    that was held back is no gain.
    """
    if audit.problem or audit.worst is None or audit.scored is None or audit.blind is None or audit.held_bpb is None:
        return Verdict(Status.REJECT, f"audit: {audit.problem or 'no answer'}")
    worst, mean = TOLERANCE[device]
    if audit.worst > worst or abs(audit.blind - audit.scored) > mean:
        found = f"{audit.scored:.6f} nats a token were scored, {audit.blind:.6f} when it could not look ahead"
        return Verdict(Status.REJECT, f"audit: {found}, {audit.worst:.4f} apart at worst, at {audit.probes} places")
    if before is None:
        return keep
    if before.held_bpb is None:
        return replace(keep, reason=f"{keep.reason}; the incumbent's audit is gone: its held-back score is unknown")
    if task.better(audit.held_bpb, before.held_bpb):
        return keep
    gone = f"{audit.held_bpb - before.held_bpb:+.6f} on the held-back split"
    return Verdict(Status.DISCARD, f"{keep.reason}, but {gone}: no gain")
