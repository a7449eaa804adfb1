"""Run a candidate: train it and have it scored. Its code runs in children only; the number comes from the referee.

A child talks over one socket to a trusted process of ours (corpus.serve) that owns the data. It sees batches, never a
file of them, and what it hands over goes through that process, too: nothing is read from where it can write.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.cell import Cell, Job, failure_of
from agent.config import Task
from agent.folder import CHECKPOINT, CURVE, EXECUTION, METRICS, RUN_LOG, SPEC, TrialFolder
from agent.machine import Machine
from agent.pruning import Watched
from agent.scoring import BASELINE_SECONDS, Scorer
from agent.smoke import NO_CHECKPOINT, Pace, Smoke, SmokeTest
from agent.values import Candidate, Run
from agent.watcher import Watcher
from corpus.budget import Budget
from sandbox.metrics import Metrics, MetricsError, format_summary, parse_summary
from sandbox.pool import Slot
from sandbox.process import Ending, Execution
from sandbox.workspace import write_aside

STARTUP_SECONDS = 300.0  # what a run may take before and after training, besides its budget
FLOP_TOLERANCE = 0.05  # between the forward passes of the smoke run and of scoring, which are of one model


@dataclass(frozen=True)
class Bench:
    """Everything that all runs of a session share. fixed: text of the files no edit may touch."""

    task: Task
    fixed: Mapping[str, str]
    cell: Cell
    pace: Pace = field(default_factory=Pace)

    @property
    def machine(self) -> Machine:
        return self.cell.machine

    @property
    def scorer(self) -> Scorer:
        return Scorer(self.fixed, self.cell, self.pace.score)

    def smoke(self, candidate: Candidate, folder: Path, budget: str, slot: Slot) -> Smoke | None:
        """See agent.smoke; None where the task has no smoke run."""
        test = SmokeTest(self.task, self.fixed, self.cell, self.pace)
        return test.of(candidate, folder, budget, slot) if self.task.profile == "train" else None

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
        watched: Watched | None = None,
    ) -> Run:
        """Train `candidate` in `folder` and measure it. Whatever goes wrong is in the Run, not raised.

        watched: what to stop it by when its curve shows no hope, None to let it run on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in (EXECUTION, METRICS, CURVE):  # of a run that was cut off
            (folder / name).unlink(missing_ok=True)
        spec = {"seed": seed, "budget": budget, "flop_per_token": smoke.flop_per_token if smoke else None}
        write_aside(folder / SPEC, json.dumps(spec | {"sandbox": self.cell.isolation.level}, indent=1))
        limit = self.wall_limit(Budget.parse(budget))
        log = folder / RUN_LOG
        files = {"checkpoint": str(folder / CHECKPOINT), "curve": str(folder / CURVE)}
        serve = ("feed", spec | files) if self.task.profile == "train" else None
        sources = {**candidate.sources, **self.fixed}
        job = Job(self.task.command, sources, spec, log, limit, serve)
        with Watcher(folder, watched, cancel) as watcher:
            execution, fed = self.cell.run(job, folder, slot, watcher.stop)
        stopped = watcher.told if execution.ending is Ending.CANCELLED and not cancel.is_set() else ""
        failure, scored = stopped or failure_of(execution, log, limit), {}
        if serve is not None:
            failure = failure or _sealing(fed)
            scored = {} if failure else self.scorer.first(candidate, fed["described"], folder, slot, cancel)
            failure = failure or str(scored.get("error", "")) or _flop(smoke, scored, self.machine.device)
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
            stopped=bool(stopped),
        )
        _write_run(folder, result, fed | {"scoring": scored})
        return result

    def finished(self, trial: TrialFolder) -> tuple[Run, ...]:
        """Runs of a trial that was cut off, up to the first that left no number; what lies behind them goes."""
        runs: list[Run] = []
        for folder in trial.runs():
            if len(runs) == int(folder.name) and (run := read_run(folder)) is not None:
                runs.append(run)
            else:
                shutil.rmtree(folder)
        return tuple(runs)

    def wall_limit(self, budget: Budget) -> float:
        if budget.unit == "s":
            return max(2 * budget.amount, budget.amount + STARTUP_SECONDS)
        return BASELINE_SECONDS if self.pace.train is None else max(30.0, 3 * self.pace.train)

    def paced(self, smoke: Smoke | None, baseline: Run) -> Bench:
        """The same bench with the baseline's times as the measure of all later limits."""
        trained, metrics = baseline.execution.wall_seconds, baseline.metrics
        if smoke is None:
            return replace(self, pace=Pace(train=trained))
        scored = metrics.total_seconds - trained if metrics else None
        peak = metrics.peak_vram_mb if metrics and self.machine.device == "cuda" else None
        return replace(self, pace=Pace(smoke.seconds, trained, scored, smoke.startup_flop, smoke.memory_mb, peak))


def _sealing(fed: Mapping[str, Any]) -> str:
    """Why the checkpoint does not count, "" if it does."""
    late = fed.get("sealed_after")
    if late is None or not fed.get("described"):
        return NO_CHECKPOINT
    if late > fed["deadline"]:
        return f"checkpoint {late:.1f} s after the end of training, {fed['deadline']:.1f} s are allowed"
    return ""


def _flop(smoke: Smoke | None, scored: Mapping[str, Any], device: str) -> str:
    """Why the FLOPs that were charged cannot be right: what was scored is a larger model than the one counted.

    A smaller one is its author's loss, and one whose routing depends on the text.
    """
    counted, found = smoke.forward_flop_per_token if smoke else None, scored.get("forward_flop_per_token")
    if counted is None or (found is not None and found <= (1 + FLOP_TOLERANCE) * counted):
        return ""
    says = "none" if found is None else f"{found:.4g}"
    hint = "; constants of a GPU are chosen by prepare.machine(), not by device()" if device == "cuda" else ""
    return (
        f"FLOPs: expected {counted:.4g} for a token's forward pass, as in the smoke run, found {says} in scoring{hint}"
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


def read_run(folder: Path) -> Run | None:
    """A run that left a number, as it was written."""
    if not all((folder / name).is_file() for name in (SPEC, EXECUTION, METRICS)):
        return None
    spec, facts, metrics = (json.loads((folder / name).read_text()) for name in (SPEC, EXECUTION, METRICS))
    measured = facts.pop("measured")
    flop, share = measured.get("flop"), float(measured.get("progress", 1.0))
    execution = Execution(**facts | {"ending": Ending(facts["ending"]), "log_path": folder / RUN_LOG})
    if execution.ending is Ending.CANCELLED:
        return None
    tflop = None if flop is None else flop / 1e12
    return Run(spec["seed"], spec["budget"], execution, Metrics(**metrics), tflop=tflop, fraction=share)


def _write_run(folder: Path, result: Run, measured: Mapping[str, Any]) -> None:
    """How it ended comes last: what has that file has all of them."""
    execution = asdict(result.execution) | {"log_path": result.execution.log_path.name}
    if result.metrics is not None:
        write_aside(folder / METRICS, json.dumps(asdict(result.metrics), indent=1))
    write_aside(folder / EXECUTION, json.dumps(execution | {"measured": dict(measured)}, indent=1))
