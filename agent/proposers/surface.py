"""Where to look next, by a response surface of all trials so far (Box and Wilson 1951, J. R. Stat. Soc. B 13, 1-45).

In the unit cube of the knobs a loss is taken for a sum of parabolas, one a knob, fitted by Bayesian linear regression
(Bishop 2006, section 3.3). A night has tens of trials and there are about twenty knobs: two numbers a knob are what so
few trials can tell, and each trial tells something about every knob that it turned, however many those were. The next
point is the best of CANDIDATES around the incumbent under one draw of the surface from what is known of it (Thompson
1933; Russo et al. 2018, https://arxiv.org/abs/1707.02038): where little is known draws differ, and so it is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from agent.proposers.axis import Axis
from agent.proposers.cube import Cube

Array: TypeAlias = NDArray[np.floating[Any]]

# Chosen on recorded trials (benchmarks/search/compare.py). Losses are shares of the incumbent's.
WORST = 0.5  # what a failure counts as, and whatever is further behind: how far does not matter there
NOISE = 0.05  # standard deviation of what parabolas do not explain
EFFECT = 0.3  # the same of their coefficients, before anything is known
CANDIDATES = 300
STEP = 0.15  # of a small step in the cube; half of them go anywhere


class Surface(BaseSampler):
    """Draws all axes at once. now: the incumbent's value, `sign` is 1 where less is better and -1 where more is.

    The axes stand where the incumbent does. Trials of the study that lack one of them are left out.
    """

    def __init__(self, axes: Sequence[Axis], now: float, sign: int, seed: str) -> None:
        self._axes, self._now, self._sign = axes, now, sign
        self._rng = np.random.default_rng(list(seed.encode()))
        self._anywhere = RandomSampler(int(self._rng.integers(2**31)))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {axis.key: axis.distribution for axis in self._axes}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        cube = Cube(tuple(self._axes))
        known = list(self._known(study, cube))
        points, losses = np.array([point for point, _ in known]), np.array([loss for _, loss in known])
        point = suggested(points.reshape(-1, len(self._axes)), losses, cube.now, self._rng)
        values = cube.decode(point.tolist())
        return {axis.key: axis.encode(values[axis.name]) for axis in self._axes}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._anywhere.sample_independent(study, trial, param_name, param_distribution)

    def _known(self, study: Study, cube: Cube) -> Iterator[tuple[Array, float]]:
        """Points and losses; of a run that was stopped, where it was heading."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            value = trial.value if trial.state is TrialState.COMPLETE else max(trial.intermediate_values.items())[1]
            if value is not None and all(axis.key in trial.params for axis in self._axes):
                point = cube.encode({axis.name: axis.decode(trial.params[axis.key]) for axis in self._axes})
                yield point, self._sign * (value - self._now) / (abs(self._now) or 1.0)


def suggested(points: Array, losses: Array, now: Array, rng: Generator) -> Array:
    """The next point, (d,) in [0, 1]. points: (n, d) in [0, 1]. losses: (n,), less that of `now`, the incumbent."""
    drawn = coefficients(features(points) - features(now), np.minimum(losses, WORST), rng)
    around = candidates(now, rng)
    best: Array = around[np.argmin((features(around) - features(now)) @ drawn)]
    return best


def features(points: Array) -> Array:
    """Of each coordinate the coefficient of its line and its parabola: (…, d) to (…, 2 d), both of about one size."""
    away = points - 0.5
    return np.concatenate([away, 2 * (away**2 - 1 / 12)], axis=-1)


def coefficients(inputs: Array, losses: Array, rng: Generator) -> Array:
    """One draw from what (n, m) inputs with (n,) losses say of the (m,) coefficients."""
    precision = inputs.T @ inputs / NOISE**2 + np.eye(inputs.shape[1]) / EFFECT**2
    mean = np.linalg.solve(precision, inputs.T @ losses / NOISE**2)
    root = np.linalg.cholesky(precision)
    return mean + np.linalg.solve(root.T, rng.standard_normal(len(mean)))


def candidates(now: Array, rng: Generator) -> Array:
    """(CANDIDATES, d): one to all coordinates of `now` moved, a small step or to anywhere."""
    size = (CANDIDATES, len(now))
    turned = rng.random(size).argsort(axis=1) < rng.integers(1, len(now) + 1, (CANDIDATES, 1))
    near = np.clip(now + STEP * rng.standard_normal(size), 0, 1)
    moved = np.where(rng.random(size) < 0.5, near, rng.random(size))
    found: Array = np.where(turned, moved, now)
    return found
