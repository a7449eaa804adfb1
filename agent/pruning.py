"""The pruner of a trial, from the curves that lie in the folders of sessions, and what its looks have come to.

pruning.json, in the folder of a first run: the kind of the change, the trial that was the incumbent, and the look at
which nothing was to be hoped for, if there was one; ran_on where the run was let go on all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from agent.errors import StateError
from agent.folder import CURVE, EXECUTION, METRICS, SPEC, SessionFolder
from agent.kinds import Kind
from agent.pruner import RUN_ON, Curve, Pair, Past, Prospect, Pruner, curve_of
from agent.reruns import alike
from agent.values import Status
from sandbox.workspace import write_aside

PRUNING = "pruning.json"
BROKEN = (OSError, ValueError, KeyError, TypeError, StateError)  # what reading half a folder, or a stranger's, raises
MAX_CURVE = 1 << 20  # characters that are read; a run writes what it likes, train.py some ten thousand


@dataclass(frozen=True)
class Looked:
    """incumbent: number of the trial that it was compared with."""

    kind: Kind
    incumbent: int
    prospect: Prospect | None = None
    ran_on: bool = False

    def write(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        write_aside(run / PRUNING, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Watched:
    """What there is to know while a run goes on. spare: let it run on, whatever is found."""

    looked: Looked
    pruner: Pruner
    spare: bool

    def look(self, run: Path) -> Looked | None:
        """What the curve in the run's folder says, once that is anything: written there, too."""
        prospect = None if self.pruner.margin is None else self.pruner.hopeless(read_curve(run))
        if prospect is None:
            return None
        looked = replace(self.looked, prospect=prospect, ran_on=self.spare)
        looked.write(run)
        return looked

    def told(self, prospect: Prospect) -> str:
        """For the ledger."""
        against = f"against {self.pruner.score:.6f} of trial {self.looked.incumbent}"
        heading, best = (self.pruner.score + behind for behind in (prospect.gap, prospect.behind))
        return (
            f"stopped at {prospect.share:.0%} of its budget: heading for val_bpb {heading:.6f}, "
            f"{best:.6f} at best, {against}"
        )


def watched(
    folder: SessionFolder, facts: Mapping[str, Any], number: int, looked: Looked, *, sigma: float, wanted: float
) -> Watched:
    """For trial `number` of the session with these facts. sigma: of the difference of two candidates on one seed.
    wanted: what its first run has to gain to be looked at further."""
    rival = _ended(folder.trial(looked.incumbent).run(0))
    past = [past for kind, past in pasts(folder.root, facts) if looked.kind.learns_from(kind)]
    curve, score = (rival.curve, rival.score) if rival else (Curve(), 0.0)
    return Watched(looked, Pruner(curve, score, past, sigma, wanted), spared(folder.tag, number))


def tally(folder: SessionFolder) -> dict[str, Any]:
    """What stopping early has saved and cost in a session. ran_on_better: would-be stops that ended ahead."""
    shares, better = list[float](), list[bool]()
    for _, trial in folder.trials():
        with suppress(*BROKEN):
            looked = looked_at(trial.run(0))
            if looked is None or looked.prospect is None:
                continue
            run = _ended(trial.run(0))
            if not looked.ran_on and not run:  # else it was too late to stop it
                shares.append(float(looked.prospect.share))
            elif looked.ran_on and run and (rival := _ended(folder.trial(looked.incumbent).run(0))):
                better.append(run.score < rival.score)
    return {
        "stopped_early": len(shares),
        "stopped_at": round(fmean(shares), 4) if shares else None,
        "ran_on": len(better),
        "ran_on_better": sum(better),
    }


def spared(tag: str, number: int) -> bool:
    """Whether a trial is one of the RUN_ON that are never stopped; a session that goes on decides as it did."""
    return int(sha256(f"{tag} {number}".encode()).hexdigest()[:8], 16) < RUN_ON * 2**32


def pasts(root: Path, facts: Mapping[str, Any]) -> Iterator[tuple[Kind, Past]]:
    """Of trials on other code in sessions like this one, whose first run came to its end; score less incumbent's."""
    for folder in alike(root, facts):
        for number, _ in folder.trials():
            with suppress(*BROKEN):  # no reason to end a session
                yield from _past(folder, number)


def _past(folder: SessionFolder, number: int) -> Iterator[tuple[Kind, Past]]:
    trial = folder.trial(number)
    looked, run, row = looked_at(trial.run(0)), _ended(trial.run(0)), trial.record()
    rival = _ended(folder.trial(looked.incumbent).run(0)) if looked else None
    if looked is None or run is None or rival is None or run.seed != rival.seed:
        return
    if row is not None and row.status == Status.REJECT:  # its score did not survive the audit
        return
    weight = 1 / RUN_ON if looked.ran_on else 1.0
    yield looked.kind, Past(Pair(run.curve, rival.curve, rival.score), run.score - rival.score, weight)


def looked_at(run: Path) -> Looked | None:
    if not (run / PRUNING).is_file():
        return None
    facts = json.loads((run / PRUNING).read_text())
    prospect = facts["prospect"] and Prospect(**facts["prospect"])
    return Looked(Kind(**facts["kind"]), facts["incumbent"], prospect, facts["ran_on"])


def read_curve(run: Path) -> Curve:
    """What has been written so far."""
    file = run / CURVE
    text = file.read_text()[:MAX_CURVE] if file.is_file() else ""
    return curve_of(json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines())


@dataclass(frozen=True)
class _Run:
    seed: int
    score: float
    curve: Curve


def _ended(run: Path) -> _Run | None:
    """A run that left a number. It does not change any more, so that it is read once."""
    return _read(run) if (run / METRICS).is_file() and (run / EXECUTION).is_file() else None


@lru_cache(maxsize=4096)
def _read(run: Path) -> _Run:
    score = json.loads((run / METRICS).read_text())["val_bpb"]
    return _Run(json.loads((run / SPEC).read_text())["seed"], score, read_curve(run))
