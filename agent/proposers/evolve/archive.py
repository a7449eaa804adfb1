"""Everything that evolution knows, as one frozen value and one JSON file: who was bred of whom, and what each run gave.

The file is written aside and renamed after every generation and every result, so that a killed session finds either
the state before a result or the one behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.errors import StateError, because
from agent.proposers.evolve.genome import Policy
from sandbox.workspace import write_aside

FILE = "archive.json"
INCUMBENT, BAD = "incumbent", "bad"  # operators of nobody: what there was, and what the evaluator is tried on


class Stage(StrEnum):
    SCREEN = "screen"
    PROMOTION = "promotion"
    TRIAL = "trial"


@dataclass(frozen=True)
class Preset:
    """generations of `size` new policies each."""

    name: str
    generations: int
    size: int


PRESETS = {one.name: one for one in (Preset("conservative", 5, 8), Preset("aggressive", 10, 16))}


@dataclass(frozen=True)
class Individual:
    """A policy and where it comes from. change: against its first parent, for a person."""

    policy: Policy
    operator: str
    generation: int
    parents: tuple[str, ...] = ()
    change: str = ""

    @property
    def id(self) -> str:
        return self.policy.id


@dataclass(frozen=True)
class Wanted:
    """A run: whose, in which generation and stage, on which seed (None: the session's), beside which code."""

    id: str
    generation: int
    stage: Stage
    seed: int | None
    base: str


@dataclass(frozen=True)
class Result:
    """What came of a run. score: None where it left none. speed: tokens of training a second. rise: nats that the loss
    rose above its lowest so far, at most; None where there is no curve."""

    run: Wanted
    trial: int | None
    status: str
    score: float | None
    speed: float | None = None
    rise: float | None = None


@dataclass(frozen=True)
class Generation:
    """reference: the incumbent's policy, which all are measured against. base: hash of the code around the policy.

    promoted, survivors: None until that is decided.
    """

    number: int
    base: str
    reference: str
    members: tuple[str, ...]
    promoted: tuple[str, ...] | None = None
    survivors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Archive:
    """generations, results: oldest first. direction: min or max of the score is better."""

    preset: Preset
    seed: int
    direction: str = "min"
    individuals: Mapping[str, Individual] = field(default_factory=dict)
    generations: tuple[Generation, ...] = ()
    results: tuple[Result, ...] = ()

    def joined(self, individuals: Sequence[Individual]) -> Archive:
        """With these as well; whoever is known stays as he was first bred."""
        new = {one.id: one for one in individuals if one.id not in self.individuals}
        return replace(self, individuals={**self.individuals, **new})

    def begun(self, generation: Generation) -> Archive:
        return replace(self, generations=(*self.generations, generation))

    def revised(self, generation: Generation) -> Archive:
        """With this in place of the last one."""
        return replace(self, generations=(*self.generations[:-1], generation))

    def told(self, result: Result) -> Archive:
        return replace(self, results=(*self.results, result))

    def result(self, run: Wanted) -> Result | None:
        return next((one for one in self.results if one.run == run), None)

    def found(self, generation: Generation, stage: Stage, id: str) -> list[Result]:
        """Of that individual in that generation, beside the code that the generation has now."""
        where = (id, generation.number, stage, generation.base)
        return [one for one in self.results if (one.run.id, one.run.generation, one.run.stage, one.run.base) == where]

    def screen(self, generation: Generation, id: str) -> Result | None:
        return next(iter(self.found(generation, Stage.SCREEN, id)), None)

    def gain(self, ours: float, theirs: float) -> float:
        """How much better `ours` is, in the metric's unit; to the six digits of a score."""
        return round(theirs - ours if self.direction == "min" else ours - theirs, 6)

    def screened_gain(self, generation: Generation, id: str) -> float | None:
        """Over the reference, on the generation's seed; None where one of the two left no score."""
        ours, theirs = self.screen(generation, id), self.screen(generation, generation.reference)
        if ours is None or theirs is None or ours.score is None or theirs.score is None:
            return None
        return self.gain(ours.score, theirs.score)

    def gains(self, generation: Generation, id: str) -> list[float]:
        """Over the reference, promotion seed by promotion seed; [] if it left no score on one of them."""
        theirs = {one.run.seed: one.score for one in self.found(generation, Stage.PROMOTION, generation.reference)}
        ours = self.found(generation, Stage.PROMOTION, id)
        if any(one.score is None for one in ours):
            return []
        pairs = [(one.score, theirs.get(one.run.seed)) for one in ours]
        return [self.gain(a, b) for a, b in pairs if a is not None and b is not None]

    def facts(self) -> dict[str, Any]:
        """As JSON has it; the policy as its fields."""
        people = [asdict(one) | {"id": one.id, "policy": one.policy.fields} for one in self.individuals.values()]
        return asdict(self) | {"individuals": people}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Archive:
        """From `facts`."""
        people = [_individual(one) for one in facts["individuals"]]
        return cls(
            Preset(**facts["preset"]),
            facts["seed"],
            facts["direction"],
            {one.id: one for one in people},
            tuple(_generation(one) for one in facts["generations"]),
            tuple(Result(**one | {"run": wanted(one["run"])}) for one in facts["results"]),
        )


def wanted(facts: Mapping[str, Any]) -> Wanted:
    """From asdict(Wanted), by way of JSON."""
    return Wanted(**{**facts, "stage": Stage(facts["stage"])})


def load(folder: Path) -> Archive | None:
    """The archive in a proposer's folder, None where there is none. StateError for one that cannot be read."""
    path = folder / FILE
    try:
        return Archive.of(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StateError(f"{path}: expected an archive of evolve, found: {error}; use another --tag") from None


def save(folder: Path, archive: Archive) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / FILE, json.dumps(archive.facts(), indent=1))
    except OSError as error:
        raise StateError(f"evolve: expected to write {folder / FILE}, found: {because(error)}") from None


def _individual(facts: Mapping[str, Any]) -> Individual:
    own = {name: value for name, value in facts.items() if name != "id"}
    return Individual(**own | {"policy": Policy.of(facts["policy"]), "parents": tuple(facts["parents"])})


def _generation(facts: Mapping[str, Any]) -> Generation:
    lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    return Generation(**{**facts, **lists})
