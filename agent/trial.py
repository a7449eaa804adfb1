"""Run a candidate: smoke, train, score. Candidate code runs in children only; the number comes from the referee.

A training child and a scoring child each talk over one socket to a trusted process of ours (corpus.serve) that owns the
data; they see batches, never a file of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.config import Task
from agent.dialogue import converse
from agent.errors import SmokeError
from agent.folder import CHECKPOINT
from agent.machine import Machine
from agent.values import Candidate, Run
from corpus.budget import Budget
from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.metrics import Metrics, MetricsError, format_summary, parse_summary
from sandbox.pool import Slot
from sandbox.process import Ending, Execution, run, tail
from sandbox.workspace import make_workspace, remove_workspace, write_aside

SMOKE_SECONDS = 10.0
SMOKE_BUDGET = "64steps"  # draws; the feed ends a smoke run after two optimizer steps, whatever they accumulate
STARTUP_SECONDS = 300.0  # what a run may take before and after training, besides its budget
BASELINE_SECONDS = 6 * 3600.0  # for the first run of a session, which nobody has timed yet
MEMORY_SHARE = 0.9  # of the machine's, that a run may be expected to take
TAIL_LINES = 40


@dataclass(frozen=True)
class Smoke:
    """Two steps of a candidate. flop_per_token: of whole training steps, None where they ran on another device than
    training does; memory_mb: peak, MiB; seconds: wall."""

    flop_per_token: float | None
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
    """Everything that all runs of a session share. fixed: text of the files no edit may touch; data: folder or None."""

    task: Task
    fixed: Mapping[str, str]
    data: Path | None
    machine: Machine
    pace: Pace = Pace()

    # ── smoke ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def smoke(self, candidate: Candidate, folder: Path, budget: str, slot: Slot) -> Smoke | None:
        """Two real steps, a checkpoint, and the model built from it again; None where the task has no smoke run.

        They run on the CPU, where the small-machine constants make them cheap, unless the budget is in FLOPs: those are
        counted here, so the device must be the one that trains. Raise SmokeError with the tail of the log.
        """
        if self.task.profile != "train":
            return None
        device = self.machine.device if Budget.parse(budget).unit == "flop" else "cpu"
        limit = SMOKE_SECONDS * 6 if self.pace.smoke is None else max(SMOKE_SECONDS, 3 * self.pace.smoke)
        spec = {"seed": 0, "budget": SMOKE_BUDGET, "smoke": True}
        with self._work(candidate, folder, spec | {"device": device}) as work:
            execution, fed = self._pair("feed", spec, self.task.command, work, folder / "run.log", limit, slot)
            failure = _failure(execution, folder / "run.log", limit) or _sealing(fed, work)
        if failure or not fed.get("flop_per_token"):
            raise SmokeError(f"two small steps fail ({failure or 'no training step was made'}):\n{_tail(folder)}")
        room = MEMORY_SHARE * self.machine.memory_gb * 1024
        if device == "cpu" == self.machine.device and execution.peak_rss_mb > room:
            raise SmokeError(
                f"it takes {execution.peak_rss_mb:.0f} MB of memory, {room:.0f} MB are there: make it smaller"
            )
        counted = fed["flop_per_token"] if device == self.machine.device else None
        return Smoke(counted, execution.peak_rss_mb, execution.wall_seconds)

    # ── one training and its score ───────────────────────────────────────────────────────────────────────────────────

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
        spec = {"seed": seed, "budget": budget, "flop_per_token": smoke.flop_per_token if smoke else None}
        limit = self.wall_limit(Budget.parse(budget))
        log = folder / "run.log"
        with self._work(candidate, folder, spec) as work:
            if self.task.profile == "train":
                execution, fed = self._pair("feed", spec, self.task.command, work, log, limit, slot, cancel)
                failure = _failure(execution, log, limit) or _sealing(fed, work)
                scored = {} if failure else self._score(candidate, work, folder, slot, cancel)
                failure = failure or str(scored.get("error", "")) or _print_summary(log, work, fed, scored, execution)
            else:
                execution, fed, scored = self._plain(work, log, limit, slot, cancel), {}, {}
                failure = _failure(execution, log, limit)
            _keep_files(work, folder)
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

    def _score(
        self, candidate: Candidate, work: Path, folder: Path, slot: Slot, cancel: threading.Event
    ) -> dict[str, Any]:
        """The referee's result; `error` in it says why there is no number. A fresh process with pristine files."""
        for path, text in {**candidate.sources, **self.fixed}.items():
            write_aside(work / path, text)
        write_aside(work / "trial.json", json.dumps(_trial_file({"score": True})))
        limit = BASELINE_SECONDS if self.pace.score is None else max(30.0, 2 * self.pace.score)
        log = folder / "score.log"
        command = ("python", "prepare.py", "score")
        execution, result = self._pair("referee", {}, command, work, log, limit, slot, cancel)
        failure = _failure(execution, log, limit)
        if failure or "val_bpb" not in result:
            result["error"] = result.get("error") or f"scoring: {failure or 'no answer'}"
        return result | {"seconds": execution.wall_seconds}

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _work(self, candidate: Candidate, folder: Path, spec: Mapping[str, Any]) -> Iterator[Path]:
        """The child's own folder: the candidate, the fixed files and its settings. Gone afterwards."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_workspace(folder / "work")  # of a run that was cut off
        write_aside(folder / "trial.json", json.dumps(dict(spec), indent=1))
        files = {**self.fixed, **candidate.sources, "trial.json": json.dumps(_trial_file(spec))}
        work = make_workspace(folder / "work", files)
        try:
            yield work
        finally:
            remove_workspace(work)

    def _pair(
        self,
        role: str,
        spec: Mapping[str, Any],
        command: Sequence[str],
        work: Path,
        log: Path,
        limit: float,
        slot: Slot,
        cancel: threading.Event | None = None,
    ) -> tuple[Execution, dict[str, Any]]:
        """Run a child beside the trusted process it talks to; how it ended and what the other side measured."""

        def child(fd: int) -> Execution:
            settings = json.loads((work / "trial.json").read_text()) | {"fd": fd}
            write_aside(work / "trial.json", json.dumps(settings))
            return self._child(command, work, log, limit, slot, cancel, [fd])

        return converse(role, dict(spec) | {"data": str(self.data)}, work.parent, child)

    def _plain(self, work: Path, log: Path, limit: float, slot: Slot, cancel: threading.Event) -> Execution:
        return self._child(self.task.command, work, log, limit, slot, cancel, [])

    def _child(
        self,
        command: Sequence[str],
        work: Path,
        log: Path,
        limit: float,
        slot: Slot,
        cancel: threading.Event | None,
        fds: Sequence[int],
    ) -> Execution:
        argv = [sys.executable if command[0] == "python" else command[0], *command[1:]]
        env = child_env({"OVERNIGHT_TRIAL": str(work / "trial.json")} | dict(slot.env))
        return run(argv, cwd=work, env=env, limits=Limits(limit), log=log, pass_fds=fds, cancel=cancel)

    def paced(self, smoke: Smoke | None, baseline: Run) -> Bench:
        """The same bench with the baseline's times as the measure of all later limits."""
        trained = baseline.execution.wall_seconds
        scored = baseline.metrics.total_seconds - trained if baseline.metrics and smoke else None
        return replace(self, pace=Pace(smoke.seconds if smoke else None, trained, scored))


def _trial_file(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the child is told: no path of the data, and nothing it could use to find other trials."""
    return {key: value for key, value in spec.items() if value is not None}


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


def _sealing(fed: Mapping[str, Any], work: Path) -> str:
    """Why the checkpoint does not count, "" if it does."""
    late = fed.get("sealed_after")
    if late is None or not (work / CHECKPOINT).is_file():
        return "no checkpoint: prepare.finish(model, config) was not reached"
    if late > fed["deadline"]:
        return f"checkpoint {late:.1f} s after the end of training, {fed['deadline']:.1f} s are allowed"
    return ""


def _print_summary(
    log: Path, work: Path, fed: Mapping[str, Any], scored: Mapping[str, Any], execution: Execution
) -> str:
    """Write the block to the run's log. What the model says of itself may be nonsense: then why, else ""."""
    try:
        facts = json.loads((work / "config.json").read_text())["facts"]
        block = format_summary(
            Metrics(
                val_bpb=scored["val_bpb"],
                training_seconds=fed["seconds"],
                total_seconds=execution.wall_seconds + scored["seconds"],
                total_tokens_M=fed["tokens"] / 1e6,
                num_steps=fed["steps"],
                **facts,
            )
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"no number: the checkpoint's facts do not make a summary ({error})"
    with log.open("a") as file:
        file.write("\n" + block)
    return ""


def _metrics(log: Path) -> tuple[Metrics | None, str]:
    try:
        return parse_summary(log.read_text(errors="replace")), ""
    except MetricsError as error:
        return None, f"no number: {error}"


def _keep_files(work: Path, folder: Path) -> None:
    for name in ("curve.jsonl", CHECKPOINT, "config.json"):
        if (work / name).is_file():
            shutil.move(work / name, folder / name)


def _write_run(folder: Path, result: Run, measured: Mapping[str, Any]) -> None:
    execution = asdict(result.execution) | {"log_path": result.execution.log_path.name}
    write_aside(folder / "execution.json", json.dumps(execution | {"measured": dict(measured)}, indent=1))
    if result.metrics is not None:
        write_aside(folder / "metrics.json", json.dumps(asdict(result.metrics), indent=1))


def _tail(folder: Path) -> str:
    return tail(folder / "run.log", TAIL_LINES)
