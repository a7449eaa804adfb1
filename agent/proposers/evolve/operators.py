"""What each operator has been worth. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from agent.proposers.evolve.archive import Archive, Generation, Individual, Stage
from agent.proposers.evolve.mutations import CROSSOVER, MUTATIONS
from agent.values import Status


@dataclass(frozen=True)
class Operator:
    """applied: children made by it and screened. promoted, survived: of them. won: kept by the session's judge.

    mean, best: gain in the screen over the generation's reference, in the metric's unit; None where none was measured.
    """

    name: str
    applied: int
    promoted: int
    survived: int
    won: int
    mean: float | None
    best: float | None


def operators(archive: Archive) -> list[Operator]:
    """All of them, those never applied included."""
    return [_operator(archive, name) for name in (*MUTATIONS, CROSSOVER)]


def _operator(archive: Archive, name: str) -> Operator:
    own = [one for one in archive.individuals.values() if one.operator == name]
    screened = [one for one in own if any(archive.screen(where, one.id) for where in archive.generations)]
    born = {where.number: where for where in archive.generations}
    gains = [gain for one in own if (gain := archive.screened_gain(born[one.generation], one.id)) is not None]
    return Operator(
        name,
        len(screened),
        _count(archive, own, lambda where: where.promoted),
        _count(archive, own, lambda where: where.survivors),
        sum(won(archive, one.id) for one in own),
        fmean(gains) if gains else None,
        max(gains, default=None),
    )


def won(archive: Archive, id: str) -> bool:
    """Whether the session's judge kept it."""
    trials = (one for one in archive.results if one.run.stage is Stage.TRIAL and one.run.id == id)
    return any(one.status == Status.KEEP for one in trials)


def _count(archive: Archive, own: list[Individual], list_of: Callable[[Generation], tuple[str, ...] | None]) -> int:
    return sum(any(one.id in (list_of(where) or ()) for where in archive.generations) for one in own)
