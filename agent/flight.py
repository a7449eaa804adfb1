"""A trial on its way through the pool: what there is to do for it next, as a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.desk import Draft
from agent.pruning import Watched
from agent.smoke import Smoke
from agent.trial import Bench
from agent.values import Candidate, Outcome, RunAgain, Trial, Verdict
from sandbox.pool import Slot

Job = Callable[[Slot, threading.Event], Outcome]


@dataclass(frozen=True)
class Flight:
    """draft: where the trial came from, None for the baseline. again: what the judge asked for, None in the first run.

    keep: the verdict that is being audited, None while it trains. audited: how many of its runs have held.
    """

    trial: Trial
    smoke: Smoke | None
    draft: Draft | None
    again: RunAgain | None = None
    keep: Verdict | None = None
    audited: int = 0

    @property
    def defends(self) -> bool:
        """What runs is the incumbent, on a seed on which the trial has run."""
        return self.again is not None and self.again.incumbent

    @property
    def held(self) -> bool:
        """Every run has. Code that cheats now and then would else be counted where nobody looked."""
        return self.audited == len(self.trial.runs)


def training(
    bench: Bench,
    candidate: Candidate,
    folder: Path,
    seed: int,
    budget: str,
    smoke: Smoke | None,
    watched: Watched | None = None,
) -> Job:
    def job(slot: Slot, cancel: threading.Event) -> Outcome:
        return bench.run(
            candidate, folder, seed=seed, budget=budget, smoke=smoke, slot=slot, cancel=cancel, watched=watched
        )

    return job


def auditing(bench: Bench, flight: Flight, folder: Path) -> Job:
    """folder: of the run that is asked again, blindly."""

    def job(slot: Slot, cancel: threading.Event) -> Outcome:
        found = bench.scorer.audit(flight.trial.candidate, folder, slot, cancel)
        return None if cancel.is_set() else found

    return job
