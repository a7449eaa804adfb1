"""Run a candidate: smoke, train, and have it scored. Its code runs in children only; the number comes from the referee.

A child talks over one socket to a trusted process of ours (corpus.serve) that owns the data. It sees batches, never a
file of them, and what it hands over goes through that process, too: nothing is read from where it can write.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.cell import MEMORY_SHARE, Cell, Job, end_of, failure_of
from agent.config import Task
from agent.errors import SmokeError
from agent.folder import CHECKPOINT, EXECUTION, RUN_LOG
from agent.machine import Machine
from agent.scoring import BASELINE_SECONDS, Scorer, eager
from agent.values import Candidate, Run
from corpus.budget import Budget
from sandbox.metrics import Metrics, MetricsError, format_summary, parse_summary
from sandbox.pool import Slot
from sandbox.process import Ending, Execution
from sandbox.workspace import write_aside

SMOKE_SECONDS = 10.0
SMOKE_BUDGET = "64steps"  # draws; the feed ends a smoke run after two optimizer steps, whatever they accumulate
STARTUP_SECONDS = 300.0  # what a run may take before and after training, besides its budget
FLOP_TOLERANCE = 0.05  # between the forward passes of the smoke run and of scoring, which are of one model
NO_CHECKPOINT = "no checkpoint: prepare.finish(model, config) was not reached"


@dataclass(frozen=True)
class Smoke:
    """Two steps of a candidate. flop_per_token: of whole training steps, and of a forward pass alone; None where they
    ran on another device than training does. startup_flop: of all before the first batch. memory_mb: peak, MiB;
    seconds: wall."""

    flop_per_token: float | None
    forward_flop_per_token: float | None
    startup_flop: float
    memory_mb: float
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What the baseline took, from which every later limit follows. None until the baseline has run.

    smoke, train, score: seconds. startup_flop: FLOPs before its first batch.
    """

    smoke: float | None = None
    train: float | None = None
    score: float | None = None
    startup_flop: float | None = None

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

    @property
    def scorer(self) -> Scorer:
        return Scorer(self.fixed, self.cell, self.pace.score)

    def smoke(self, candidate: Candidate, folder: Path, budget: str, slot: Slot) -> Smoke | None:
        """Two real steps, a checkpoint, and the model built from it again; None where the task has no smoke run.

        They run on the CPU, where the small-machine constants make them cheap, unless the budget is in FLOPs: those are
        counted here, so the device must be the one that trains. Raise SmokeError with the end of the log.
        """
        if self.task.profile != "train":
            return None
        own = self.machine.device
        device = own if Budget.parse(budget).unit == "flop" else "cpu"
        limit = SMOKE_SECONDS * 6 if self.pace.smoke is None else max(SMOKE_SECONDS, 3 * self.pace.smoke)
        spec = {"seed": 0, "budget": SMOKE_BUDGET, "smoke": True, "checkpoint": str(folder / CHECKPOINT)}
        job = self._job(candidate, spec | {"device": device}, folder / RUN_LOG, limit, ("feed", spec))
        execution, fed = self.cell.run(job, folder, eager(slot))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        failure = failure_of(execution, job.log, limit) or ("" if fed.get("described") else NO_CHECKPOINT)
        if failure or not (fed.get("flop_per_token") and fed.get("forward_flop_per_token")):
            raise SmokeError(f"two small steps fail ({failure or 'no training step was made'}):\n{end_of(job.log)}")
        room = MEMORY_SHARE * self.machine.memory_gb * 1024
        if device == "cpu" == own and execution.peak_rss_mb > room:
            raise SmokeError(
                f"it takes {execution.peak_rss_mb:.0f} MB of memory, {room:.0f} MB are there: make it smaller"
            )
        forward = fed["forward_flop_per_token"]
        charged = max(fed["flop_per_token"], forward)  # a token that is drawn costs a forward pass at the least
        started = fed.get("startup_flop") or 0.0
        if self.pace.startup_flop is not None:
            free = 2 * (self.pace.startup_flop + charged * (fed["warm_tokens"] + fed["tokens"]))
            if started > free:
                raise SmokeError(
                    f"start-up computes {started:.3g} FLOPs before the first batch, where {free:.3g} are free (twice "
                    "what the baseline's start-up, the warm-up and two steps take): train on batches from the feed"
                )
        smoke = Smoke(charged, forward, started, execution.peak_rss_mb, execution.wall_seconds)
        return smoke if device == own else replace(smoke, flop_per_token=None, forward_flop_per_token=None)

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
        write_aside(folder / "trial.json", json.dumps(spec | {"sandbox": self.cell.isolation.level}, indent=1))
        limit = self.wall_limit(Budget.parse(budget))
        log = folder / RUN_LOG
        files = {"checkpoint": str(folder / CHECKPOINT), "curve": str(folder / "curve.jsonl")}
        serve = ("feed", spec | files) if self.task.profile == "train" else None
        execution, fed = self.cell.run(self._job(candidate, spec, log, limit, serve), folder, slot, cancel)
        failure, scored = failure_of(execution, log, limit), {}
        if serve is not None:
            failure = failure or _sealing(fed)
            scored = {} if failure else self.scorer.first(candidate, fed["described"], folder, slot, cancel)
            failure = failure or str(scored.get("error", "")) or _flop(smoke, scored)
            failure = failure or _print_summary(log, fed, scored, execution)
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

    def wall_limit(self, budget: Budget) -> float:
        if budget.unit == "s":
            return max(2 * budget.amount, budget.amount + STARTUP_SECONDS)
        return BASELINE_SECONDS if self.pace.train is None else max(30.0, 3 * self.pace.train)

    def _job(
        self,
        candidate: Candidate,
        told: Mapping[str, Any],
        log: Path,
        seconds: float,
        serve: tuple[str, Mapping[str, Any]] | None,
    ) -> Job:
        """The child is told what concerns it: no path of the data, and nothing it could use to find other trials."""
        known = {key: value for key, value in told.items() if value is not None and key not in ("checkpoint", "curve")}
        return Job(self.task.command, {**candidate.sources, **self.fixed}, known, log, seconds, serve)

    def paced(self, smoke: Smoke | None, baseline: Run) -> Bench:
        """The same bench with the baseline's times as the measure of all later limits."""
        trained = baseline.execution.wall_seconds
        scored = baseline.metrics.total_seconds - trained if baseline.metrics and smoke else None
        began = smoke.startup_flop if smoke else None
        return replace(self, pace=Pace(smoke.seconds if smoke else None, trained, scored, began))


def _sealing(fed: Mapping[str, Any]) -> str:
    """Why the checkpoint does not count, "" if it does."""
    late = fed.get("sealed_after")
    if late is None or not fed.get("described"):
        return NO_CHECKPOINT
    if late > fed["deadline"]:
        return f"checkpoint {late:.1f} s after the end of training, {fed['deadline']:.1f} s are allowed"
    return ""


def _flop(smoke: Smoke | None, scored: Mapping[str, Any]) -> str:
    """Why the FLOPs that were charged cannot be right: what was scored is a larger model than the one counted.

    A smaller one is its author's loss, and one whose routing depends on the text.
    """
    counted, found = smoke.forward_flop_per_token if smoke else None, scored.get("forward_flop_per_token")
    if counted is None or (found is not None and found <= (1 + FLOP_TOLERANCE) * counted):
        return ""
    says = "none" if found is None else f"{found:.4g}"
    return f"FLOPs: expected {counted:.4g} for a token's forward pass, as in the smoke run, found {says} in scoring"


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
    except (ValueError, TypeError, KeyError, OverflowError) as error:
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
    write_aside(folder / EXECUTION, json.dumps(execution | {"measured": dict(measured)}, indent=1))
    if result.metrics is not None:
        write_aside(folder / "metrics.json", json.dumps(asdict(result.metrics), indent=1))
