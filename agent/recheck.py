"""Is what the ledger says still true? Every kept row measured again: from its commit, its checkpoint, blindly."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from agent.candidate import digest_of
from agent.folder import CHECKPOINT, CONFIG, SessionFolder
from agent.judge import confirm
from agent.ledger import kept, read
from agent.repo import Repo, trial_ref
from agent.trial import Bench
from agent.values import Candidate, Proposal, Record, Status, Verdict
from sandbox.pool import Slot

SLOT = Slot(0, "audit")
# What two scorings of one checkpoint may differ by, in bits per byte: rows have six decimals, GPUs less than that.
SAME = {"cpu": 2e-6, "cuda": 1e-4, "mps": 1e-4}
RETRAINED = 0.01  # and two trainings with one seed: no more is promised of other threads and other machines


@dataclass(frozen=True)
class Check:
    """One row again. found: its score now. problem: why it does not hold, "" when it does."""

    trial: int
    description: str
    claimed: float | None
    found: float | None
    problem: str


def recheck(bench: Bench, folder: SessionFolder, repo: Repo, retrain: bool) -> Iterator[Check]:
    """Every kept row, oldest first. retrain: train again where the checkpoint is gone."""
    for record in filter(kept, read(folder.ledger)):
        values, problem = _measure(bench, folder, repo, record, retrain)
        found = fmean(values) if values else None
        gone = not all((run / CHECKPOINT).is_file() for run in folder.trial(record.trial or 0).runs())
        allowed = RETRAINED if gone else SAME[bench.machine.device]
        problem = problem or _differs(record, found, allowed)
        yield Check(record.trial or 0, record.description, record.val_bpb, found, problem)


def _measure(bench: Bench, folder: SessionFolder, repo: Repo, record: Record, retrain: bool) -> tuple[list[float], str]:
    """The scores of all runs of the row, and what is wrong with one of them."""
    number = record.trial or 0
    values: list[float] = []
    commit = repo.ref(trial_ref(folder.tag, number))
    if commit is None or (record.commit or "?") != commit[:7]:
        return [], f"expected commit {record.commit} under its ref, found {commit and commit[:7]}"
    candidate = _candidate(repo.read(commit, bench.task.targets), commit)
    for run in folder.trial(number).runs():
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            gone = not (run / CHECKPOINT).is_file()
            if gone and not retrain:
                return values, f"the checkpoint of run {run.name} is gone; --retrain trains it again"
            problem = _train(bench, candidate, record, scratch) if gone else _again(bench, candidate, run, scratch)
            if isinstance(problem, str):
                return values, problem
            values.append(problem)
            audit = bench.audit(candidate, scratch, SLOT, threading.Event())
            if audit is None:
                return values, "the harness did not score this task"
            verdict = confirm(Verdict(Status.KEEP, ""), audit, None, bench.machine.device, bench.task)
            if verdict.status is not Status.KEEP:
                return values, verdict.reason
    return values, ""


def _again(bench: Bench, candidate: Candidate, run: Path, scratch: Path) -> float | str:
    (scratch / CHECKPOINT).symlink_to((run / CHECKPOINT).resolve())
    (scratch / CONFIG).write_bytes((run / CONFIG).read_bytes())
    return bench.score(candidate, scratch, SLOT, threading.Event())


def _train(bench: Bench, candidate: Candidate, record: Record, scratch: Path) -> float | str:
    budget = record.budget or ""
    smoke = bench.smoke(candidate, scratch / "smoke", budget, SLOT)
    seed = record.seed if record.seed is not None else 42
    done = bench.run(candidate, scratch, seed=seed, budget=budget, smoke=smoke, slot=SLOT, cancel=threading.Event())
    return done.metrics.val_bpb if done.metrics else done.failure


def _candidate(sources: Mapping[str, str], commit: str) -> Candidate:
    return Candidate(Proposal((), "again"), sources, commit, digest_of(sources), "")


def _differs(record: Record, found: float | None, allowed: float) -> str:
    if found is None or record.val_bpb is None:
        return "expected a score, found none"
    return "" if abs(found - record.val_bpb) <= allowed else f"expected {record.val_bpb:.6f}, found {found:.6f}"
