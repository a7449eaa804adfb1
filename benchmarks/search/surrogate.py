"""What a trial of train.py would come to, guessed from the recorded ones: its score, its failure, its noise.

    python -m benchmarks.search.surrogate [--json FILE]

Scores: a Gaussian process (Matérn 5/2, a length for each feature) over the knobs in the unit cube and what follows from
them: width, FLOPs of a token, steps of the budget. It is fitted to log(score - FLOOR), so that what fell apart does not
outweigh what matters. Failures: the share among the nearest recorded points. Noise: of trials that ran again on another
seed. The command prints how far guesses are off for trials that were left out, ten at a time.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from agent.constants import Choices
from agent.proposers.axis import Axis
from benchmarks.records import facts, headline, markdown, options, save
from benchmarks.search.space import BUDGET, Point, Space, default_space
from benchmarks.search.trials import Row, load, of_constants
from corpus.budget import Budget

FLOOR = 1.0  # bits per byte; no trial of this budget comes near it
VOCABULARY, LENGTH = 1024, 256  # of the data that trials were recorded on
NEIGHBOURS = 8
FOLDS = 10


@dataclass(frozen=True)
class Surrogate:
    """rows: recorded trials, at least a few dozen with a score."""

    space: Space
    rows: Sequence[Row]

    def score(self, point: Point) -> float:
        """Bits per byte, without noise."""
        return float(self.scores([point])[0])

    def scores(self, points: Sequence[Point]) -> NDArray[np.float64]:
        inputs = np.stack([self.features(point) for point in points])
        return FLOOR + np.exp(self._model.predict(inputs) + self._offset)

    def fails(self, point: Point) -> float:
        """Probability of a trial without a score."""
        here = self.features(point)
        distance = np.linalg.norm(self._places - here, axis=1)
        nearest = np.argsort(distance)[:NEIGHBOURS]
        weight = 1 / (0.1 + distance[nearest])
        return float((weight * self._failed[nearest]).sum() / weight.sum())

    @cached_property
    def noise(self) -> float:
        """σ over seeds, of the logarithm that the process is fitted to: half the variance of two seeds' difference."""
        first = {self._key(row): row for row in self.rows if row.source != "repeat" and row.val_bpb is not None}
        again = [row for row in self.rows if row.source == "repeat" and row.val_bpb is not None]
        pairs = [(_target(row), _target(first[self._key(row)])) for row in again if self._key(row) in first]
        return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / (2 * len(pairs)))

    def features(self, point: Point) -> NDArray[np.float64]:
        """(knobs + 3,)"""
        return np.array([*(_unit(axis, point[axis.name]) for axis in self.space.axes), *_derived(point)])

    @cached_property
    def _scored(self) -> list[Row]:
        return [row for row in self.rows if row.val_bpb is not None and row.source != "repeat"]

    @cached_property
    def _offset(self) -> float:
        return float(np.mean([_target(row) for row in self._scored]))

    @cached_property
    def _model(self) -> GaussianProcessRegressor:
        inputs = np.stack([self.features(row.point) for row in self._scored])
        targets = np.array([_target(row) for row in self._scored]) - self._offset
        kernel = ConstantKernel(0.3, (1e-2, 1e2)) * Matern(np.ones(inputs.shape[1]), (0.1, 30.0), nu=2.5)
        kernel = kernel + WhiteKernel(1e-3, (1e-5, 1e-1))
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # lengths of knobs that do nothing
            return GaussianProcessRegressor(kernel, random_state=0).fit(inputs, targets)

    @cached_property
    def _places(self) -> NDArray[np.float64]:
        return np.stack([self.features(row.point) for row in self.rows])

    @cached_property
    def _failed(self) -> NDArray[np.float64]:
        return np.array([float(row.val_bpb is None) for row in self.rows])

    def _key(self, row: Row) -> str:
        return repr(sorted(row.point.items()))


def left_out(space: Space, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(found, guessed) for every scored trial, guessed from all but its fold; repeats are in no fold."""
    scored = [row for row in rows if row.val_bpb is not None and row.source != "repeat"]
    pairs = []
    for fold in range(FOLDS):
        held, held_points = scored[fold::FOLDS], {repr(row.point) for row in scored[fold::FOLDS]}
        known = Surrogate(space, [row for row in rows if repr(row.point) not in held_points])
        guesses = known.scores([row.point for row in held])
        pairs += [(row.val_bpb or 0.0, float(guess)) for row, guess in zip(held, guesses, strict=True)]
    return pairs


def _target(row: Row) -> float:
    assert row.val_bpb is not None, "a trial with a score"
    return math.log(row.val_bpb - FLOOR)


def _unit(axis: Axis, value: Any) -> float:
    if isinstance(axis.range, Choices):
        return axis.range.values.index(value) / (len(axis.range.values) - 1)
    low, high, here = axis.range.low, axis.range.high, float(value)
    if axis.range.log:
        low, high, here = math.log(low), math.log(high), math.log(here)
    return (here - low) / (high - low)


def _derived(point: Point) -> tuple[float, float, float]:
    """Logarithms of width, FLOPs of a token and steps of the budget, each over the span that the space has."""
    number = {name: float(value) for name, value in point.items() if isinstance(value, int | float)}
    width = number["HEAD_DIM"] * math.ceil(number["DEPTH"] * number["ASPECT_RATIO"] / number["HEAD_DIM"])
    block = (4 + 2 * number["MLP_RATIO"]) * width**2
    flop = 6 * (number["DEPTH"] * block + width * VOCABULARY) + 12 * width * number["DEPTH"] * LENGTH
    steps = Budget.parse(BUDGET).amount / (flop * number["TOTAL_BATCH_SIZE"])
    return math.log(width / 200) / 2, math.log(flop / 5e6) / 4, math.log(steps / 40) / 4


def main() -> int:
    args = options(__doc__ or "").parse_args()
    space, rows = default_space(), of_constants(load())
    pairs = np.array(left_out(space, rows))
    error = pairs[:, 1] - pairs[:, 0]
    rank = np.corrcoef(pairs.argsort(0).argsort(0).T)[0, 1]
    better = pairs[:, 0] <= np.median(pairs[:, 0])
    model = Surrogate(space, rows)
    result = facts(
        trials=len(rows),
        scored=len(pairs),
        failed=sum(row.val_bpb is None for row in rows),
        rmse=round(float(np.sqrt((error**2).mean())), 4),
        rmse_better_half=round(float(np.sqrt((error[better] ** 2).mean())), 4),
        median_error=round(float(np.median(np.abs(error))), 4),
        sd=round(float(pairs[:, 0].std()), 4),
        rank_correlation=round(float(rank), 4),
        noise=round(model.noise, 4),
        repeats=sum(row.source == "repeat" for row in rows),
    )
    save(result, args.json)
    shown = ("trials", "failed", "rmse", "rmse_better_half", "median_error", "sd", "rank_correlation", "noise")
    print(headline(result))
    print(markdown(["what", "value"], [[name, str(result[name])] for name in shown]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
