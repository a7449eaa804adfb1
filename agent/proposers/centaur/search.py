"""CMA-ES as a function of what it was told: the same tells give the same next suggestion. Pure.

CMA-ES with margin (Hamano and others 2022, https://arxiv.org/abs/2205.13482), which keeps some probability on the
neighbours of a whole number or a choice; the plain one gets stuck there once its steps are small.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from cmaes import CMAwM

from agent.proposers.cube import Array, Cube

# Of the cube's side, at first. The textbook's 0.2 to 0.3 is for an optimum that may be anywhere; the incumbent is near,
# and with twenty knobs a suggestion lies √20 steps from the mean. A night has too few generations to shrink them much.
SIGMA = 0.1
REACH = 0.4  # of a bin's width, at least: then one suggestion in ten leaves the bin of a choice on each side
AGAIN = 0.5  # of SIGMA, around code that has changed: most knobs are near their best values already


@dataclass(frozen=True)
class Origin:
    """Where a search begins. skeleton: of the code whose knobs it turns. keys, bins: of the cube's n axes.

    mean: (n,) in the cube. cov: (n, n), in units of sigma²; None where nothing is learned yet.
    """

    skeleton: str
    keys: tuple[str, ...]
    bins: tuple[int, ...]
    mean: tuple[float, ...]
    sigma: float = SIGMA
    cov: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def of(cls, skeleton: str, cube: Cube) -> Origin:
        return cls(skeleton, cube.keys, cube.bins, tuple(cube.now.tolist()))


@dataclass(frozen=True)
class Tell:
    """A result. point: (n,), as it was drawn, or of a `foreign` one its place in the cube. value: lower is better,
    None for a failure."""

    point: tuple[float, ...]
    value: float | None
    foreign: bool


class Search:
    """Of one origin, after these tells: every λ of them, in the order they came, are a generation."""

    def __init__(self, origin: Origin, tells: Sequence[Tell]) -> None:
        self._steps = np.array([1 / k if k else 0.0 for k in origin.bins])
        self._low, self._high = self._steps / 2, 1 - self._steps / 2
        mean = np.clip(origin.mean, self._low, self._high)
        cov = np.diag(_first(origin.bins)) if origin.cov is None else np.array(origin.cov)
        self._cma = CMAwM(mean, origin.sigma, np.stack([self._low, self._high], axis=1), self._steps, cov=cov)
        size = self._cma.population_size
        for start in range(0, len(tells) - size + 1, size):
            self._generation(tells[start : start + size])

    @property
    def size(self) -> int:
        """λ, results in a generation."""
        return int(self._cma.population_size)

    @property
    def generation(self) -> int:
        return int(self._cma.generation)

    @property
    def mean(self) -> Array:
        """(n,) in the cube."""
        return np.asarray(np.clip(self._cma.mean, 0.0, 1.0))

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._cma._cma._sigma)  # the package shows neither this nor the matrix

    @property
    def covariance(self) -> Array:
        """Of a suggestion before it is cut to the cube: (n, n), the step size included."""
        scale = self.sigma * self._margin
        return np.asarray(self._cma._cma._C * np.outer(scale, scale))

    @property
    def _margin(self) -> Array:
        """By how much a coordinate is stretched, so that a neighbour stays in reach: (n,)."""
        return np.asarray(getattr(self._cma, "_A", np.ones(len(self._steps))))

    def draw(self, seed: str) -> tuple[Array, Array]:
        """A suggestion: where in the cube it is, and how it is to be told; (n,) both. The same for the same seed."""
        self._cma.reseed_rng(random.Random(seed).getrandbits(32))
        place, drawn = self._cma.ask()
        return place, drawn

    def _generation(self, tells: Sequence[Tell]) -> None:
        """A failure is worse than anything measured; only ranks count."""
        points = [self._injected(tell.point) if tell.foreign else np.array(tell.point) for tell in tells]
        values = [math.inf if tell.value is None else tell.value for tell in tells]
        self._cma.tell(list(zip(points, values, strict=True)))

    def _injected(self, place: Sequence[float]) -> Array:
        """A point that CMA-ES did not draw, moved towards the mean until one like it could have been drawn.

        Hansen 2011, https://arxiv.org/abs/1110.4181: the Mahalanobis distance is at most √n + 2n / (n + 2).
        """
        mean, n = self._cma.mean, len(place)
        step = (np.array(place) - mean) / self._margin
        far = math.sqrt(step @ np.linalg.solve(self._cma._cma._C, step)) / self.sigma
        return np.asarray(mean + step * min(1.0, (math.sqrt(n) + 2 * n / (n + 2)) / max(far, 1e-12)))


def _first(bins: Sequence[int]) -> Array:
    """Variances of axes of which nothing is known, in units of sigma²: (n,)."""
    return np.array([max(1.0, REACH / k / SIGMA) ** 2 if k else 1.0 for k in bins])


def moved(old: Origin, tells: Sequence[Tell], new: Origin) -> Origin:
    """`new` with the shape that the search from `old` has learned, on the axes that both have.

    Scales and correlations are kept, the size is not: it starts at AGAIN of the first one.
    """
    common = [(new.keys.index(key), old.keys.index(key)) for key in old.keys if key in new.keys]
    cov = np.diag(_first(new.bins))
    if common:
        ours, theirs = (list(side) for side in zip(*common, strict=True))
        learned = Search(old, tells).covariance[np.ix_(theirs, theirs)]
        cov[np.ix_(ours, ours)] = learned / np.mean(np.diag(learned))
    return replace(new, sigma=AGAIN * SIGMA, cov=tuple(map(tuple, cov.tolist())))
