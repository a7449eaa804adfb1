"""A trial's end as a row of the ledger, and as the line a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from agent.text import one_line
from agent.values import Proposal, Record, Run, Status, Trial, Verdict

CUT_OFF = "the session ended before it could run"  # reason of a row that was only paid for


@dataclass(frozen=True)
class Origin:
    """What every row of a session shares: where and on what it was measured."""

    budget: str
    hardware: str
    torch: str
    data: str
    slot: str = "local"


def record_of(trial: Trial, verdict: Verdict, parent: Record | None, cost_usd: float, origin: Origin) -> Record:
    """The row of a trial that ran. Its value is what fresh seeds have shown: the parent's, less the gain there; of one
    that ran on one seed only, its score there.

    A number that did not survive its audit, or of code that crashed on another seed, is in the reason only.
    """
    first, proposal, metrics = trial.runs[0], trial.candidate.proposal, trial.runs[0].metrics
    value = verdict.finding.value if verdict.finding else metrics.val_bpb if metrics else None
    gains = list(verdict.finding.gains.values()) if verdict.finding else []
    return Record(
        commit=trial.commit[:7],
        val_bpb=value if verdict.status in (Status.KEEP, Status.DISCARD) else None,
        memory_gb=metrics.peak_vram_mb / 1024 if metrics else first.execution.peak_rss_mb / 1024,
        status=verdict.status.value,
        description=proposal.description,
        trial=trial.number,
        parent=parent.commit if parent else None,
        proposer=proposal.proposer,
        category=proposal.category,
        budget=proposal.budget or origin.budget,
        seed=first.seed,
        n=len(gains) or 1,
        sigma=stdev(gains) if len(gains) > 1 else None,
        fraction=first.fraction,
        train_seconds=metrics.training_seconds if metrics else None,
        total_seconds=_total_seconds(trial.runs),
        tokens_M=metrics.total_tokens_M if metrics else None,
        tflop=first.tflop,
        cost_usd=cost_usd,
        hardware=origin.hardware,
        slot=origin.slot,
        torch=origin.torch,
        data=origin.data,
        reason=verdict.reason,
    )


def rejected(number: int, proposal: Proposal | None, reason: str, cost_usd: float, origin: Origin) -> Record:
    """The row of a proposal that never became a trial."""
    return Record(
        commit=None,
        val_bpb=None,
        memory_gb=None,
        status=Status.REJECT.value,
        description=(proposal.description if proposal else "") or "(no readable proposal)",
        trial=number,
        proposer=proposal.proposer if proposal else "",
        category=proposal.category if proposal else "",
        budget=origin.budget,
        cost_usd=cost_usd,
        hardware=origin.hardware,
        slot=origin.slot,
        torch=origin.torch,
        data=origin.data,
        reason=reason,
    )


def line(record: Record) -> str:
    """One line for a terminal or a log."""
    value = "        " if record.val_bpb is None else f"{record.val_bpb:.6f}"
    seconds = "" if record.total_seconds is None else f"{record.total_seconds:5.0f} s"
    says = f"{one_line(record.description)}  ({one_line(record.reason)[:160]})"
    return f"{record.trial:>4}  {record.status:<8} {value}  {seconds:>7}  {says}"


def outcome(record: Record) -> str:
    """What to tell a proposer that proposes the same again."""
    value = "no number" if record.val_bpb is None else f"val_bpb {record.val_bpb:.6f}"
    return f"trial {record.trial} ({record.description}) ended as {record.status} with {value}"


def _total_seconds(runs: Sequence[Run]) -> float:
    return sum(run.metrics.total_seconds if run.metrics else run.execution.wall_seconds for run in runs)
