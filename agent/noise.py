"""How much a score moves when nothing but the seed changes, and how well that is known. Pure.

Two standard deviations. `over_seeds`, σ: of one candidate's score from seed to seed. `paired`: of the difference of two
candidates on one seed; less than √2 σ, because a seed (order of the batches, first weights) is kind or unkind to both.

A variance from a handful of runs is itself mostly noise. So each is pooled with a prior, a scaled inverse chi-square of
ν₀ degrees of freedom (Gelman et al., Bayesian Data Analysis, 3rd ed., section 2.6):

    s² = (ν₀ s₀² + Σ (x - mean)²) / (ν₀ + ν),    and quantiles are those of Student's t with ν₀ + ν degrees
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import chdtri, log_ndtr, stdtrit  # scipy.stats takes a second to import


@dataclass(frozen=True)
class Spread:
    """A standard deviation, in the metric's unit, and the degrees of freedom that it is known to."""

    sd: float
    dof: float

    def pooled(self, groups: Iterable[Sequence[float]], most: float = math.inf) -> Spread:
        """Updated with groups of values, each group around a mean of its own; groups of one say nothing.

        most: what a value counts as if it lies further from its mean.
        """
        told = [
            (sum(min(abs(value - fmean(group)), most) ** 2 for value in group), len(group) - 1)
            for group in groups
            if group
        ]
        squares, dof = sum(square for square, _ in told), sum(degrees for _, degrees in told)
        return Spread(math.sqrt((self.dof * self.sd**2 + squares) / (self.dof + dof)), self.dof + dof)

    def interval(self, level: float) -> tuple[float, float]:
        """Where the standard deviation lies with probability `level`."""
        low, high = (float(chdtri(self.dof, (1 + side * level) / 2)) for side in (-1, 1))
        return self.sd * math.sqrt(self.dof / low), self.sd * math.sqrt(self.dof / high)

    def error(self, runs: int, level: float) -> float:
        """How far the mean of so many values may lie from the truth, to one side, with probability `level`."""
        return float(stdtrit(self.dof, level)) * self.sd / math.sqrt(runs)


def without_luck(gain: float, least: float, error: float) -> float:
    """What a measured gain is worth that would not have been believed below `least`: luck helps past that (the winner's
    curse).

    The mean of the gain and of its conditional maximum likelihood estimate, never below zero: Zhong and Prentice 2008,
    https://doi.org/10.1093/biostatistics/kxn001. error: standard error of the gain, all in one unit.
    """

    def expected(truth: float) -> float:
        z = (truth - least) / error
        return truth + error * math.exp(-0.5 * z * z - float(log_ndtr(z))) / math.sqrt(2 * math.pi)

    low, high = 0.0, max(0.0, gain)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < gain else (low, middle)
    return (gain + low) / 2


@dataclass(frozen=True)
class Noise:
    over_seeds: Spread
    paired: Spread


OUTLIER = 3.0
# (σ, paired) as shares of the score, and how many degrees of freedom they are worth elsewhere. On CPUs: 75 runs of
# fifteen variants of train.py and 33 of eleven kept ones, at 2e12 FLOPs, gave 0.0030 and 0.0052 from seed to seed and
# 0.0037 and 0.0045 in pairs (docs/bench.md, benchmarks/results/optim_trainer.json and session_forty_repeated.json).
# On GPUs: about 5e-4 of 0.99 over seeds at 300 s on an H200, as published by others; nothing is known of pairs.
PRIORS = {"cpu": (0.004, 0.004, 8.0), "cuda": (5e-4, 7e-4, 4.0), "mps": (0.004, 0.004, 2.0)}


def prior(device: str, score: float) -> Noise:
    """What is believed before anything was run twice. score: of the baseline, in the metric's unit."""
    over_seeds, paired, dof = PRIORS[device]
    return Noise(Spread(over_seeds * abs(score), dof), Spread(paired * abs(score), dof))


def measured(before: Noise, groups: Iterable[Sequence[float]], pairs: Iterable[Sequence[float]]) -> Noise:
    """groups: scores of one candidate on several seeds. pairs: differences of two candidates, a seed each.

    A prior of pairs moves with σ, of which more is measured. One candidate that falls apart on some seed would hide all
    later gains, so no deviation counts as more than OUTLIER of what even unrelated seeds would give.
    """
    over_seeds = before.over_seeds.pooled(groups)
    share = over_seeds.sd / before.over_seeds.sd if before.over_seeds.sd else 1.0
    most = OUTLIER * math.sqrt(2) * over_seeds.sd
    return Noise(over_seeds, Spread(before.paired.sd * share, before.paired.dof).pooled(pairs, most))
