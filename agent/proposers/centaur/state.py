"""What is on disk of the search: what was asked and told, in order. The optimiser is rebuilt from it, each time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.errors import StateError
from agent.proposers.centaur.search import Origin, Search, Tell
from sandbox.workspace import write_aside

CMAES, MODEL, CHANCE, INCUMBENT, ORIGIN = "CMA-ES", "model", "chance", "incumbent", "origin"


@dataclass(frozen=True)
class Asked:
    """A point. search: index of its origin. by: who chose it, one of the names above.

    drawn: what CMA-ES drew here, as it wants it told. own: where that is in the cube. place: where the point is that
    was chosen, the same unless somebody else did. digest: of the source with it. values: as they are written there.
    """

    number: int
    search: int
    by: str
    drawn: tuple[float, ...]
    own: tuple[float, ...]
    place: tuple[float, ...]
    digest: str
    values: Mapping[str, str]

    @property
    def key(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class Answer:
    """What came of it. value: lower is better, None for a failure. trial, status: of its row."""

    number: int
    value: float | None
    trial: int | None
    status: str


@dataclass(frozen=True)
class State:
    """ranges: those that were derived when a constant was first seen (agent.proposers.axis.settled)."""

    ranges: Mapping[str, list[Any]] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()
    asked: tuple[Asked, ...] = ()
    told: tuple[Answer, ...] = ()

    @property
    def here(self) -> int:
        """Index of the present origin."""
        return len(self.origins) - 1

    @property
    def results(self) -> int:
        """Of all searches, without what they began with."""
        return sum(self.asked[answer.number].by != ORIGIN for answer in self.told)

    def search(self) -> Search:
        """The present one."""
        return Search(self.origins[-1], self.tells())

    def tells(self) -> list[Tell]:
        """Results of the present search, in the order they came. Its origin is none: nobody drew it."""
        told = [(self.asked[answer.number], answer) for answer in self.told]
        return [
            Tell(asked.drawn if asked.by == CMAES else asked.place, answer.value, asked.by != CMAES)
            for asked, answer in told
            if asked.search == self.here and asked.by != ORIGIN
        ]

    def open(self) -> Iterator[Asked]:
        """Points of the present search without a result."""
        told = {answer.number for answer in self.told}
        return (asked for asked in self.asked if asked.search == self.here and asked.number not in told)

    def waits(self, key: str) -> Asked | None:
        """The point of that key, None if it has its result."""
        told = {answer.number for answer in self.told}
        return next((asked for asked in self.asked if asked.key == key and asked.number not in told), None)

    def with_asked(self, asked: Asked) -> State:
        """A new one, or one in the place of what had its number."""
        return replace(self, asked=(*self.asked[: asked.number], asked, *self.asked[asked.number + 1 :]))

    def with_told(self, answer: Answer) -> State:
        return replace(self, told=(*self.told, answer))


def load(path: Path) -> State:
    """Raise StateError for a file that cannot be read."""
    if not path.is_file():
        return State()
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return State(
            facts["ranges"],
            tuple(Origin(**_tuples(origin)) for origin in facts["origins"]),
            tuple(Asked(**_tuples(asked)) for asked in facts["asked"]),
            tuple(Answer(**answer) for answer in facts["told"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"expected the state of the centaur search at {path}, found: {error}; move it away to start afresh"
        ) from None


def save(path: Path, state: State) -> None:
    """A reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, json.dumps(asdict(state)))


def _tuples(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists, and lists of lists, as the tuples that they were."""
    return {key: _tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(item) if isinstance(item, list) else item for item in items)
