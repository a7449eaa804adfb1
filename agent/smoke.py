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
NO_STEP = "no training step was made"
NO_LOOK = "prepare.py is older than this overnight and cannot run with shapes only"
NO_NUMBER = "only numbers could tell what its forward pass costs"
SHAPES = Path(__file__).parent.parent / "corpus" / "shapes.py"  # goes to the child; importing it would import torch
GUESSED = "shapes only: "  # how a line of the log begins where what was looked at is not to be relied on
ROOM = 1.05  # of the memory that the baseline was estimated to hold: as much as it, wherever the limit is


@dataclass(frozen=True)
class Smoke:
    """What two steps of the configuration that will train cost; None where a GPU's could not be looked at.

    flop_per_token: of whole training steps, and of a forward pass alone. startup_flop: of all before the first batch,
    and tokens drawn in it and in the two steps, both of the steps that were real. memory_mb: MiB, peak on a CPU; what
    uncompiled code would hold on a GPU. seconds: wall.
    """

    flop_per_token: float | None
    forward_flop_per_token: float | None
    startup_flop: float
    tokens: int
    memory_mb: float | None
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What the baseline took, from which every later limit follows. None until the baseline has run.

    smoke, train, score: seconds. startup_flop: FLOPs before its first batch. memory_mb: its `Smoke.memory_mb`, and
    peak_mb: what a GPU really held, MiB.
    """

    smoke: float | None = None
    train: float | None = None
    score: float | None = None
    startup_flop: float | None = None
    memory_mb: float | None = None
    peak_mb: float | None = None

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
        own, log = self.cell.machine.device, folder / RUN_LOG
        execution, fed, failure = self._two_steps(candidate, folder, log, slot, "cpu" if own == "cuda" else own)
        failure = failure or _unfinished(fed) or ("" if fed.get("described") else NO_CHECKPOINT)
        if failure:
            raise SmokeError(f"two small steps fail ({failure}):\n{end_of(log)}")
        smoke = _counted(fed, execution.peak_rss_mb, execution.wall_seconds)
        self._check_startup(smoke)
        if own == "cuda":
            smoke = self._shapes(candidate, folder, Budget.parse(budget), slot, smoke)
        self._check_memory(smoke)
        return smoke

    def _shapes(self, candidate: Candidate, folder: Path, budget: Budget, slot: Slot, tiny: Smoke) -> Smoke:
        """The GPU's constants, and the start-up of `tiny`.

        A failure is the candidate's unless it is known to come of looking: of a number or a device that is not there,
        of too little time, or when the baseline could not be looked at either. Then the cost stays unknown, which a
        budget in FLOPs cannot do with.
        """
        log = folder / SHAPES_LOG
        execution, fed, failure = self._two_steps(candidate, folder, log, slot, self.cell.machine.device, shapes=True)
        certain = execution.ending is Ending.EXITED and GUESSED not in log.read_text(errors="replace")
        certain, failure = certain and self.pace.memory_mb is not None, failure or _unfinished(fed)
        if not failure and "shapes_mb" not in fed:
            certain, failure = False, NO_LOOK
        needed = budget.unit == "flop"
        if needed and not failure and fed["forward_flop_per_token"] is None:
            failure = NO_NUMBER
        if failure and (certain or needed):
            raise SmokeError(f"two steps with the constants of a GPU fail ({failure}):\n{end_of(log)}")
        seconds = tiny.seconds + execution.wall_seconds
        if failure:
            return replace(tiny, flop_per_token=None, forward_flop_per_token=None, memory_mb=None, seconds=seconds)
        looked = _counted(fed, fed["shapes_mb"], seconds)
        self._check_startup(looked)
        return replace(looked, startup_flop=tiny.startup_flop, tokens=tiny.tokens)

    def _two_steps(
        self, candidate: Candidate, folder: Path, log: Path, slot: Slot, machine: str, *, shapes: bool = False
    ) -> tuple[Execution, dict[str, Any], str]:
        """How they ended, what the feeder took down, and why they failed, "" if they did not."""
        limit = SMOKE_SECONDS * 6 if self.pace.smoke is None else max(SMOKE_SECONDS, 3 * self.pace.smoke)
        spec = {"seed": 0, "budget": SMOKE_BUDGET, "smoke": True, "shapes": shapes}
        spec["checkpoint"] = str(folder / CHECKPOINT)
        beside = {SHAPES.name: SHAPES.read_text()} if shapes else {}
        files = {**candidate.sources, **self.fixed, **beside}
        told = {**spec, "device": "cpu", "machine": machine}
        job = Job(self.task.command, files, told, log, limit, ("feed", spec))
        execution, fed = self.cell.run(job, folder, _without_gpu(eager(slot)))
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return execution, fed, failure_of(execution, log, limit)

    def _check_memory(self, smoke: Smoke) -> None:
        """On a GPU the baseline says what an estimate means: its own, and what it was then found to hold."""
        takes, room = smoke.memory_mb, 1024 * self.cell.machine.memory_gb
        if self.cell.machine.device != "cuda":
            room *= MEMORY_SHARE
        elif self.pace.memory_mb is None or self.pace.peak_mb is None:
            return
        elif takes is not None:
            takes *= self.pace.peak_mb / self.pace.memory_mb
            room = max(room, ROOM * self.pace.peak_mb)
        if takes is not None and takes > room:
            raise SmokeError(f"it takes {takes:.0f} MB of memory, {room:.0f} MB are there: make it smaller")

    def _check_startup(self, smoke: Smoke) -> None:
        if self.pace.startup_flop is None:
            return
        free = 2 * (self.pace.startup_flop + (smoke.flop_per_token or 0.0) * smoke.tokens)
        if smoke.startup_flop > free:
            raise SmokeError(
                f"start-up computes {smoke.startup_flop:.3g} FLOPs before the first batch, where {free:.3g} are free "
                "(twice what the baseline's start-up, the warm-up and two steps take): train on batches from the feed"
            )


def _without_gpu(slot: Slot) -> Slot:
    """A smoke run may be beside a training, whose GPU it must not touch."""
    return replace(slot, env={**slot.env, "CUDA_VISIBLE_DEVICES": ""})


def _unfinished(fed: Mapping[str, Any]) -> str:
    if not fed.get("flop_per_token"):
        return NO_STEP
    return "" if "forward_flop_per_token" in fed else NO_CHECKPOINT


def _counted(fed: Mapping[str, Any], memory_mb: float | None, seconds: float) -> Smoke:
    """A token that is drawn is charged a forward pass at the least."""
    forward = fed["forward_flop_per_token"]
    whole, started = max(fed["flop_per_token"], forward or 0.0), fed.get("startup_flop") or 0.0
    return Smoke(whole, forward, started, fed["warm_tokens"] + fed["tokens"], memory_mb, seconds)
