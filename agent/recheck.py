"""Is what the ledger says still true? Every kept row measured again: from its commit, its checkpoint, blindly."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from agent.candidate import digest_of
from agent.errors import SmokeError
from agent.folder import CHECKPOINT, CONFIG, EXECUTION, SPEC, SessionFolder, TrialFolder
from agent.judge import after_audit
from agent.ledger import kept, read
from agent.repo import Repo, trial_ref
from agent.text import one_line
from agent.trial import Bench
from agent.values import Audit, Candidate, Finding, Proposal, Record, Status, Verdict
from corpus.home import sha256
from sandbox.pool import Slot

SLOT = Slot(0, "audit")
KEEP = Verdict(Status.KEEP, "")
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
    before, device = None, bench.machine.device
    for record in filter(kept, read(folder.ledger)):
        try:
            values, audits, problem = _measure(bench, folder, repo, record, retrain)
        except (SmokeError, OSError) as error:
            values, audits, problem = [], [], one_line(str(error))
        finding = folder.trial(record.trial or 0).finding()
        found, keep = _found(values, finding), replace(KEEP, finding=finding)
        again = [after_audit(keep, one, None if finding else before, device, bench.task) for one in audits]
        problem = problem or next((verdict.reason for verdict in again if verdict.status is not Status.KEEP), "")
        before = None if finding else audits[0] if audits else before  # to compare with on the session's seed
        runs = _counted(folder.trial(record.trial or 0))
        gone = not runs or not all((run / CHECKPOINT).is_file() for run in runs)
        allowed = RETRAINED if gone else SAME[bench.machine.device]
        problem = problem or _differs(record, found, allowed)
        yield Check(record.trial or 0, record.description, record.val_bpb, found, problem)


def _counted(trial: TrialFolder) -> list[Path]:
    """The runs that its value comes from: those on fresh seeds, where those decided."""
    finding = trial.finding()
    if finding is None:
        return trial.runs()
    found = [run for run in trial.runs() if (run / SPEC).is_file() and _seed(run) in finding.gains]
    return found if len(found) == len(finding.gains) else []


def _seed(run: Path) -> int:
    return int(json.loads((run / SPEC).read_text())["seed"])


def _found(values: list[float], finding: Finding | None) -> float | None:
    """What the row should say: its score, or, if it was kept for a gain on fresh seeds, what follows from that gain.

    A change of its scores there, from what was found then, changes the gain by as much.
    """
    if not values:
        return None
    return fmean(values) if finding is None else finding.value + fmean(values) - finding.score


def _measure(
    bench: Bench, folder: SessionFolder, repo: Repo, record: Record, retrain: bool
) -> tuple[list[float], list[Audit], str]:
    """The scores and audits of all runs of the row, and what is wrong with one of them."""
    number = record.trial or 0
    values: list[float] = []
    audits: list[Audit] = []
    if bench.task.profile != "train":
        return values, audits, "the harness did not score this task"
    commit = repo.ref(trial_ref(folder.tag, number))
    if commit is None or (record.commit or "?") != commit[:7]:
        return values, audits, f"expected commit {record.commit} under its ref, found {commit and commit[:7]}"
    candidate = _candidate(repo.read(commit, bench.task.targets), commit)
    runs = _counted(folder.trial(number))
    if not runs and folder.trial(number).finding() is not None:
        return values, audits, "runs on fresh seeds are gone, which its value comes from"
    for run in runs or [folder.trial(number).run(0)]:
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            gone = not (run / CHECKPOINT).is_file()
            if gone and not retrain:
                return values, audits, f"the checkpoint of run {run.name} is gone; --retrain trains it again"
            score = _train(bench, candidate, record, run, scratch) if gone else _again(bench, candidate, run, scratch)
            if isinstance(score, str):
                return values, audits, score
            values.append(score)
            audits.append(bench.scorer.audit(candidate, scratch, SLOT, threading.Event()))
    return values, audits, ""


def _again(bench: Bench, candidate: Candidate, run: Path, scratch: Path) -> float | str:
    found, sealed = sha256(run / CHECKPOINT), json.loads((run / EXECUTION).read_text())["measured"].get("sha256")
    if sealed not in (None, found):
        return f"expected the checkpoint that was sealed, sha256 {sealed[:12]}, found {found[:12]}"
    (scratch / CHECKPOINT).symlink_to((run / CHECKPOINT).resolve())
    (scratch / CONFIG).write_bytes((run / CONFIG).read_bytes())
    return bench.scorer.again(candidate, scratch, SLOT, threading.Event())


def _train(bench: Bench, candidate: Candidate, record: Record, run: Path, scratch: Path) -> float | str:
    """With the seed of that run, where it left word of it, else the row's."""
    budget = record.budget or ""
    smoke = bench.smoke(candidate, scratch / "smoke", budget, SLOT)
    told = run / SPEC
    told_seed = json.loads(told.read_text())["seed"] if told.is_file() else record.seed
    seed = 42 if told_seed is None else told_seed
    done = bench.run(
        candidate,
        scratch,
        seed=seed,
        budget=budget,
        smoke=smoke,
        slot=SLOT,
        cancel=threading.Event(),
    )
    return done.metrics.val_bpb if done.metrics else done.failure


def _candidate(sources: Mapping[str, str], commit: str) -> Candidate:
    return Candidate(Proposal((), "again"), sources, commit, digest_of(sources), "")


def _differs(record: Record, found: float | None, allowed: float) -> str:
    if found is None or record.val_bpb is None:
        return "expected a score, found none"
    return "" if abs(found - record.val_bpb) <= allowed else f"expected {record.val_bpb:.6f}, found {found:.6f}"
