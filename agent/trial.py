"""Run a candidate: smoke, train, score, audit. Its code runs in children only; the number comes from the referee.

A child talks over one socket to a trusted process of ours (corpus.serve) that owns the data. It sees batches, never a
file of them, and what it hands over goes through that process, too: nothing is read from where it can write.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.cell import MEMORY_SHARE, Cell, Job
from agent.config import Task
from agent.errors import SmokeError, StateError
from agent.folder import CHECKPOINT, CONFIG, SCORED
from agent.machine import Machine
from agent.values import Audit, Candidate, Run
from corpus.budget import Budget
from corpus.errors import DataError
from corpus.home import verify
from sandbox.metrics import Metrics, MetricsError, format_summary, parse_summary
from sandbox.pool import Slot
from sandbox.process import Ending, Execution, tail
from sandbox.workspace import write_aside

SMOKE_SECONDS = 10.0
SMOKE_BUDGET = "64steps"  # draws; the feed ends a smoke run after two optimizer steps, whatever they accumulate
STARTUP_SECONDS = 300.0  # what a run may take before and after training, besides its budget
BASELINE_SECONDS = 6 * 3600.0  # for the first run of a session, which nobody has timed yet
FLOP_TOLERANCE = 0.05  # between the forward passes of the smoke run and of scoring, which are of one model
AUDIT_SHARE = 8.0  # of scoring, that an audit may take: on a small data set it asks for more rows than scoring does
TAIL_LINES = 40


@dataclass(frozen=True)
class Smoke:
    """Two steps of a candidate. flop_per_token: of whole training steps, and of a forward pass alone; None where they
    ran on another device than training does. memory_mb: peak, MiB; seconds: wall."""

    flop_per_token: float | None
    forward_flop_per_token: float | None
    memory_mb: float
    seconds: float


@dataclass(frozen=True)
class Pace:
    """How long the baseline took, from which every later limit follows. None until the baseline has run."""

    smoke: float | None = None
    train: float | None = None
    score: float | None = None

    def facts(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True)
class Bench:
    """Everything that all runs of a session share. fixed: text of the files no edit may touch."""

    task: Task
    fixed: Mapping[str, str]
    cell: Cell
    pace: Pace = Pace()

    @property
    def machine(self) -> Machine:
        return self.cell.machine

    def smoke(self, candidate: Candidate, folder: Path, budget: str, slot: Slot) -> Smoke | None:
        """Two real steps, a checkpoint, and the model built from it again; None where the task has no smoke run.

        They run on the CPU, where the small-machine constants make them cheap, unless the budget is in FLOPs: those are
        counted here, so the device must be the one that trains. Raise SmokeError with the tail of the log.
        """
        if self.task.profile != "train":
            return None
        own = self.machine.device
        device = own if Budget.parse(budget).unit == "flop" else "cpu"
        limit = SMOKE_SECONDS * 6 if self.pace.smoke is None else max(SMOKE_SECONDS, 3 * self.pace.smoke)
        spec = {"seed": 0, "budget": SMOKE_BUDGET, "smoke": True, "checkpoint": str(folder / CHECKPOINT)}
        job = self._job(candidate, spec | {"device": device}, folder / "run.log", limit, ("feed", spec))
        execution, fed = self.cell.run(job, folder, slot)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        failure = _failure(execution, job.log, limit) or _sealing(fed)
        if failure or not fed.get("flop_per_token"):
            raise SmokeError(f"two small steps fail ({failure or 'no training step was made'}):\n{_tail(folder)}")
        room = MEMORY_SHARE * self.machine.memory_gb * 1024
        if device == "cpu" == own and execution.peak_rss_mb > room:
            raise SmokeError(
                f"it takes {execution.peak_rss_mb:.0f} MB of memory, {room:.0f} MB are there: make it smaller"
            )
        counted = fed if device == own else {}
        return Smoke(
            counted.get("flop_per_token"),
            counted.get("forward_flop_per_token"),
            execution.peak_rss_mb,
            execution.wall_seconds,
        )

    def run(
        self,
        candidate: Candidate,
        folder: Path,
        *,
        seed: int,
        budget: str,
        smoke: Smoke | None,
        slot: Slot,
        cancel: threading.Event,
    ) -> Run:
        """Train `candidate` in `folder` and measure it. Whatever goes wrong is in the Run, not raised."""
        folder.mkdir(parents=True, exist_ok=True)
        spec = {"seed": seed, "budget": budget, "flop_per_token": smoke.flop_per_token if smoke else None}
        write_aside(folder / "trial.json", json.dumps(spec, indent=1))
        limit = self.wall_limit(Budget.parse(budget))
        log = folder / "run.log"
        if self.task.profile == "train":
            files = {"checkpoint": str(folder / CHECKPOINT), "curve": str(folder / "curve.jsonl")}
            job = self._job(candidate, spec, log, limit, ("feed", spec | files))
            execution, fed = self.cell.run(job, folder, slot, cancel)
            failure = _failure(execution, log, limit) or _sealing(fed)
            scored = {} if failure else self._score(candidate, fed["described"], folder, slot, cancel)
            failure = failure or str(scored.get("error", "")) or _flop(smoke, scored)
            failure = failure or _print_summary(log, fed, scored, execution)
        else:
            execution, fed = self.cell.run(self._job(candidate, spec, log, limit, None), folder, slot, cancel)
            failure, scored = _failure(execution, log, limit), {}
        metrics, failure = (None, failure) if failure else _metrics(log)
        if failure and cancel.is_set():  # also while it was being scored
            execution = replace(execution, ending=Ending.CANCELLED)
        result = Run(
            seed,
            budget,
            execution,
            metrics,
            failure,
            tflop=fed["flop"] / 1e12 if fed.get("flop") is not None else None,
            fraction=float(fed.get("progress", 1.0)),
        )
        _write_run(folder, result, fed | {"scoring": scored})
        return result

    def audit(self, candidate: Candidate, folder: Path, slot: Slot, cancel: threading.Event) -> Audit | None:
        """Ask the run in `folder` again, blindly, and score the held-back split; None for a task that is not scored.

        Each in a fresh process of the candidate's code. What goes wrong is in the Audit's `problem`.
        """
        if self.task.profile != "train":
            return None
        self._verify_data()
        described = json.loads((folder / CONFIG).read_text())
        asked = {"split": "val", "nats": str(folder / SCORED), "seed": secrets.randbits(64)}
        found = self._ask("audit", asked, candidate, described, folder, slot, cancel)
        held = (
            {}
            if "error" in found
            else self._ask("referee", {"split": "held"}, candidate, described, folder, slot, cancel)
        )
        problem = str(found.get("error") or held.get("error") or "")
        result = Audit(
            probes=found.get("probes", 0),
            scored=found.get("scored"),
            blind=found.get("blind"),
            worst=found.get("worst"),
            held_bpb=held.get("val_bpb"),
            problem=problem,
            seconds=found["seconds"] + held.get("seconds", 0.0),
        )
        write_aside(folder / "audit.json", json.dumps(asdict(result), indent=1))
        return result

    def _verify_data(self) -> None:
        """What scored is what it was when it was made: nothing that ran has changed it."""
        try:
            verify(self.cell.data or Path())
        except DataError as error:
            raise StateError(str(error)) from None

    def score(self, candidate: Candidate, folder: Path, slot: Slot, cancel: threading.Event) -> float | str:
        """Score the checkpoint in `folder` once more: bits per byte, or why there is no number."""
        scored = self._score(candidate, json.loads((folder / CONFIG).read_text()), folder, slot, cancel)
        return str(scored["error"]) if scored.get("error") else float(scored["val_bpb"])

    def wall_limit(self, budget: Budget) -> float:
        if budget.unit == "s":
            return max(2 * budget.amount, budget.amount + STARTUP_SECONDS)
        return BASELINE_SECONDS if self.pace.train is None else max(30.0, 3 * self.pace.train)

    def _score(
        self, candidate: Candidate, described: Any, folder: Path, slot: Slot, cancel: threading.Event
    ) -> dict[str, Any]:
        """The referee's result; `error` in it says why there is no number. A fresh process with pristine files."""
        write_aside(folder / CONFIG, json.dumps(described))
        asked = {"split": "val", "nats": str(folder / SCORED)}
        return self._ask("referee", asked, candidate, described, folder, slot, cancel)

    def _ask(
        self,
        role: str,
        asked: Mapping[str, Any],
        candidate: Candidate,
        described: Any,
        folder: Path,
        slot: Slot,
        cancel: threading.Event,
    ) -> dict[str, Any]:
        """What referee or auditor found out about the sealed checkpoint; `error` says why it is not enough."""
        share = AUDIT_SHARE if role == "audit" else 1.0
        limit = BASELINE_SECONDS if self.pace.score is None else max(30.0, 2 * share * self.pace.score)
        log = folder / ("score.log" if role == "referee" else "audit.log")
        job = self._job(
            candidate, {"score": True}, log, limit, (role, asked), command=("python", "prepare.py", "score")
        )
        sealed: dict[str, str | Path] = {CHECKPOINT: folder / CHECKPOINT, CONFIG: json.dumps(described)}
        job = replace(job, files={**job.files, **sealed})
        execution, result = self.cell.run(job, folder, slot, cancel)
        failure = _failure(execution, log, limit)
        if failure or not ({"val_bpb", "probes"} & set(result)):
            result["error"] = result.get("error") or f"scoring: {failure or 'no answer'}"
        return result | {"seconds": execution.wall_seconds}

    def _job(
        self,
        candidate: Candidate,
        told: Mapping[str, Any],
        log: Path,
        seconds: float,
        serve: tuple[str, Mapping[str, Any]] | None,
        command: tuple[str, ...] | None = None,
    ) -> Job:
        """The child is told what concerns it: no path of the data, and nothing it could use to find other trials."""
        known = {key: value for key, value in told.items() if value is not None and key not in ("checkpoint", "curve")}
        return Job(command or self.task.command, {**candidate.sources, **self.fixed}, known, log, seconds, serve)

    def paced(self, smoke: Smoke | None, baseline: Run) -> Bench:
        """The same bench with the baseline's times as the measure of all later limits."""
        trained = baseline.execution.wall_seconds
        scored = baseline.metrics.total_seconds - trained if baseline.metrics and smoke else None
        return replace(self, pace=Pace(smoke.seconds if smoke else None, trained, scored))


def _failure(execution: Execution, log: Path, limit: float) -> str:
    """One line on why a child did not end well, "" if it did."""
    if execution.ok:
        return ""
    match execution.ending:
        case Ending.TIMED_OUT:
            return f"timed out after {limit:.0f} s"
        case Ending.OUT_OF_MEMORY:
            return f"out of memory (peak {execution.peak_rss_mb:.0f} MB)"
        case Ending.CANCELLED:
            return "cancelled"
        case Ending.SIGNALLED:
            return f"ended by signal {execution.signal}"
    last = [line.strip() for line in tail(log).splitlines() if line.strip()]
    return f"exit {execution.returncode}: {last[-1][:200] if last else 'no output'}"


def _sealing(fed: Mapping[str, Any]) -> str:
    """Why the checkpoint does not count, "" if it does."""
    late = fed.get("sealed_after")
    if late is None or not fed.get("described"):
        return "no checkpoint: prepare.finish(model, config) was not reached"
    if late > fed["deadline"]:
        return f"checkpoint {late:.1f} s after the end of training, {fed['deadline']:.1f} s are allowed"
    return ""


def _flop(smoke: Smoke | None, scored: Mapping[str, Any]) -> str:
    """Why the FLOPs that were charged cannot be right: what was scored is another model than the one counted."""
    counted, found = smoke.forward_flop_per_token if smoke else None, scored.get("forward_flop_per_token")
    if not counted or not found or abs(found / counted - 1) <= FLOP_TOLERANCE:
        return ""
    return (
        f"FLOPs: expected {counted:.4g} for a token's forward pass, as in the smoke run, found {found:.4g} in scoring"
    )


def _print_summary(log: Path, fed: Mapping[str, Any], scored: Mapping[str, Any], execution: Execution) -> str:
    """Write the block to the run's log. What the model says of itself may be nonsense: then why, else ""."""
    try:
        block = format_summary(
            Metrics(
                val_bpb=scored["val_bpb"],
                training_seconds=fed["seconds"],
                total_seconds=execution.wall_seconds + scored["seconds"],
                total_tokens_M=fed["tokens"] / 1e6,
                num_steps=fed["steps"],
                **fed["described"]["facts"],
            )
        )
    except (ValueError, TypeError, KeyError) as error:
        return f"no number: the checkpoint's facts do not make a summary ({error})"
    with log.open("a") as file:
        file.write("\n" + block)
    return ""


def _metrics(log: Path) -> tuple[Metrics | None, str]:
    try:
        return parse_summary(log.read_text(errors="replace")), ""
    except MetricsError as error:
        return None, f"no number: {error}"


def _write_run(folder: Path, result: Run, measured: Mapping[str, Any]) -> None:
    execution = asdict(result.execution) | {"log_path": result.execution.log_path.name}
    write_aside(folder / "execution.json", json.dumps(execution | {"measured": dict(measured)}, indent=1))
    if result.metrics is not None:
        write_aside(folder / "metrics.json", json.dumps(asdict(result.metrics), indent=1))


def _tail(folder: Path) -> str:
    return tail(folder / "run.log", TAIL_LINES)
