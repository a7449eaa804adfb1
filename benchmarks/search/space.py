"""The knobs that recorded trials turn: train.py's own for a CPU, sizes in ranges for a small budget. Draws of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from optuna import Study, create_study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from agent.constants import Value, find
from agent.proposers.axis import Axis

ROOT = Path(__file__).parents[2]
BUDGET, SEED = "1e12flop", 42
SMALLER = {
    "    DEPTH = 2  # range: 1..8": "    DEPTH = 2  # range: 1..4",
    "    ASPECT_RATIO = 80  # range: 32..256": "    ASPECT_RATIO = 80  # range: 32..128",
}
GOOD = ROOT / "tests" / "agent" / "edits" / "good"
# Of code, as a model would send them. The one that turns sizes only does not find the ranges that it edits.
EDITS = sorted(file for file in GOOD.glob("*.json") if file.stem != "hyperparameter_smaller")
LOST = 100.0  # bits per byte, for samplers: worse than anything that is measured
Point: TypeAlias = dict[str, Value]


@dataclass(frozen=True)
class Space:
    """axes: the knobs, each with the value it has in `source`."""

    source: str
    axes: tuple[Axis, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {axis.key: axis.distribution for axis in self.axes}

    @property
    def default(self) -> Point:
        return {axis.name: axis.constant.value for axis in self.axes}

    def point(self, params: Mapping[str, Any]) -> Point:
        return {axis.name: axis.decode(params[axis.key]) for axis in self.axes}

    def params(self, point: Mapping[str, Value]) -> dict[str, Any]:
        """Optuna's values of a point."""
        return {axis.key: axis.encode(point[axis.name]) for axis in self.axes}

    def draw(self, source: str, number: int, told: Sequence[tuple[Point, float | None]]) -> Point:
        """The `number`th point of that way of searching, after what it was told of its own points so far."""
        if source == "near":
            return self._near(number)
        if source == "model":
            return self.default if number <= len(EDITS) else self._near(-number)
        study = create_study(sampler=sampler(source, Random(f"{source} {number}").randrange(2**31)))
        enrol(study, self, told)
        return self.point(study.ask(self.distributions).params)

    def _near(self, number: int) -> Point:
        """One to three knobs of the default at random."""
        rng = Random(f"near {number}")
        study = create_study(sampler=RandomSampler(seed=abs(number)))
        drawn = self.point(study.ask(self.distributions).params)
        chosen = {axis.name for axis in rng.sample(self.axes, rng.randint(1, 3))}
        return {name: drawn[name] if name in chosen else value for name, value in self.default.items()}


def enrol(study: Study, space: Space, told: Sequence[tuple[Point, float | None]]) -> None:
    """What a study knows before it is asked. None, a trial without a number, is told as LOST."""
    for point, value in told:
        study.add_trial(
            create_trial(
                params=space.params(point),
                distributions=space.distributions,
                value=LOST if value is None else value,
            )
        )


def sampler(name: str, seed: int) -> BaseSampler:
    """Plain Optuna, as it comes."""
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)


def default_space() -> Space:
    """Of train.py on a CPU. Its largest models make less than one step of BUDGET, of which nothing is to be learned."""
    source = (ROOT / "train.py").read_text()
    for stated, smaller in SMALLER.items():
        assert source.count(stated) == 1, f"expected one line {stated!r} in train.py"
        source = source.replace(stated, smaller)
    axes = (Axis(constant, constant.range) for constant in find(source, "cpu") if constant.range is not None)
    return Space(source, tuple(axes))
