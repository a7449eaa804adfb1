"""Two steps of a candidate before any budget is spent: does it run, what does it cost, is there room for it.

They are real steps of the small machine's constants on the CPU: the tiny configuration, which OVERNIGHT_TRIAL imposes.
Where a GPU trains, its own constants are looked at besides, with tensors that have shapes and no numbers: that takes a
CPU seconds, counts the FLOPs that training and scoring will take, and estimates the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.cell import MEMORY_SHARE, Cell, Job, end_of, failure_of
from agent.config import Task
from agent.errors import SmokeError
from agent.folder import CHECKPOINT, RUN_LOG, SHAPES_LOG
from agent.scoring import eager
from agent.values import Candidate
from corpus.budget import Budget
from sandbox.pool import Slot
from sandbox.process import Ending, Execution

SMOKE_SECONDS = 10.0
SMOKE_BUDGET = "64steps"  # draws; the feed ends a smoke run after two optimizer steps, whatever they accumulate
NO_CHECKPOINT = "no checkpoint: prepare.finish(model, config) was not reached"
SHAPES = Path(__file__).parent.parent / "corpus" / "shapes.py"  # goes to the child; importing it would import torch
GUESSED = "shapes only: "  # how a line of the log begins where a number would be needed


@dataclass(frozen=True)
class Smoke:
    """What two steps of the configuration that will train cost; None where a GPU's could not be looked at.

    flop_per_token: of whole training steps, and of a forward pass alone. startup_flop: of all before the first batch;
    tokens: drawn in it and in the two steps. memory_mb: MiB, peak on a CPU, on a GPU an estimate that `Pace.memory`
    turns into one. seconds: wall.
    """

    flop_per_token: float | None
    forward_flop_per_token: float | None
    startup_flop: float | None
    tokens: int
    memory_mb: float | None
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What the baseline took, from which every later limit follows. None until the baseline has run.

    smoke, train, score: seconds. startup_flop: FLOPs before its first batch. memory: its peak on a GPU over the
    estimate, which is of code that is not compiled; None where nothing was estimated.
    """

    smoke: float | None = None
    train: float | None = None
    score: float | None = None
    startup_flop: float | None = None
    memory: float | None = None

    def facts(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True)
class SmokeTest:
    """fixed: text of the files no edit may touch."""

    task: Task
    fixed: Mapping[str, str]
    cell: Cell
    pace: Pace

    def of(self, candidate: Candidate, folder: Path, budget: str, slot: Slot) -> Smoke:
        """Two steps, a checkpoint, and the model built from it again. Raise SmokeError with the end of the log."""
        own = self.cell.machine.device
        told = {"machine": "cpu" if own == "cuda" else own}
        execution, fed, failure = self._two_steps(candidate, folder, folder / RUN_LOG, slot, told)
        failure = failure or ("" if fed.get("described") else NO_CHECKPOINT) or _uncounted(fed)
        if failure:
            raise SmokeError(f"two small steps fail ({failure}):\n{end_of(folder / RUN_LOG)}")
        smoke = _counted(fed, execution.peak_rss_mb, execution.wall_seconds)
        if own == "cuda":
            smoke = self._shapes(candidate, folder, Budget.parse(budget), slot, execution.wall_seconds)
        self._check_memory(smoke)
        self._check_startup(smoke)
        return smoke

    def _shapes(self, candidate: Candidate, folder: Path, budget: Budget, slot: Slot, seconds: float) -> Smoke:
        """The GPU's constants. seconds: that the tiny configuration took.

        A failure is the candidate's, unless only a number could tell, or the baseline failed as well. Then its cost
        stays unknown, which a budget in FLOPs cannot do with.
        """
        log = folder / SHAPES_LOG
        told = {"machine": self.cell.machine.device, "shapes": True}
        execution, fed, failure = self._two_steps(candidate, folder, log, slot, told)
        failure, seconds = failure or _uncounted(fed), seconds + execution.wall_seconds
        if not failure:
            return _counted(fed, fed["shapes_mb"], seconds)
        certain = execution.ending is Ending.EXITED and GUESSED not in log.read_text(errors="replace")
        if budget.unit == "flop" or (certain and self.pace.memory is not None):
            raise SmokeError(f"two steps with the constants of a GPU fail ({failure}):\n{end_of(log)}")
        return Smoke(None, None, None, 0, None, seconds)

    def _two_steps(
        self, candidate: Candidate, folder: Path, log: Path, slot: Slot, told: Mapping[str, Any]
    ) -> tuple[Execution, dict[str, Any], str]:
        """How they ended, what the feeder took down, and why they failed, "" if they did not."""
        limit = SMOKE_SECONDS * 6 if self.pace.smoke is None else max(SMOKE_SECONDS, 3 * self.pace.smoke)
        spec = {"seed": 0, "budget": SMOKE_BUDGET, "smoke": True, "checkpoint": str(folder / CHECKPOINT)}
        beside = {SHAPES.name: SHAPES.read_text()} if told.get("shapes") else {}
        files = {**candidate.sources, **self.fixed, **beside}
        job = Job(self.task.command, files, {**spec, "device": "cpu", **told}, log, limit, ("feed", spec))
        execution, fed = self.cell.run(job, folder, _without_gpu(eager(slot)))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return execution, fed, failure_of(execution, log, limit)

    def _check_memory(self, smoke: Smoke) -> None:
        scale = self.pace.memory if self.cell.machine.device == "cuda" else 1.0
        takes = (smoke.memory_mb or 0.0) * (scale or 0.0)
        room = MEMORY_SHARE * self.cell.machine.memory_gb * 1024
        if takes > room:
            raise SmokeError(f"it takes {takes:.0f} MB of memory, {room:.0f} MB are there: make it smaller")

    def _check_startup(self, smoke: Smoke) -> None:
        if self.pace.startup_flop is None or smoke.flop_per_token is None or smoke.startup_flop is None:
            return
        free = 2 * (self.pace.startup_flop + smoke.flop_per_token * smoke.tokens)
        if smoke.startup_flop > free:
            raise SmokeError(
                f"start-up computes {smoke.startup_flop:.3g} FLOPs before the first batch, where {free:.3g} are free "
                "(twice what the baseline's start-up, the warm-up and two steps take): train on batches from the feed"
            )


def _without_gpu(slot: Slot) -> Slot:
    """A smoke run may be beside a training, whose GPU it must not touch."""
    return replace(slot, env={**slot.env, "CUDA_VISIBLE_DEVICES": ""})


def _uncounted(fed: Mapping[str, Any]) -> str:
    counted = fed.get("flop_per_token") and fed.get("forward_flop_per_token")
    return "" if counted else "no training step was made"


def _counted(fed: Mapping[str, Any], memory_mb: float, seconds: float) -> Smoke:
    """A token that is drawn is charged a forward pass at the least."""
    forward = fed["forward_flop_per_token"]
    whole, started = max(fed["flop_per_token"], forward), fed.get("startup_flop") or 0.0
    return Smoke(whole, forward, started, fed["warm_tokens"] + fed["tokens"], memory_mb, seconds)
