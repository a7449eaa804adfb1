"""Which runs are hopeless: where a run will end, by how it goes beside its incumbent's, seed by seed the same. Pure.

At a share of the budget a run's training loss is some way behind the incumbent's: a gap g, taken to bits per byte. In
the end its score is behind by G. For every trial that ran to the end both are known, and so is by how much its early
gap overstated the last one:

    e(f) = (h(g(f) / σ) - h(G / σ)) / w(f)        h = asinh: plain near the noise σ, by ratio far beyond it
                                                  w = 1.6 - f: the earlier, the more may change
    e    = the largest over all looks f

By split conformal prediction (Vovk et al. 2005; Lei et al. 2018, https://arxiv.org/abs/1604.04173) the e of a further
trial of their kind is at most their ⌈(1 - RISK)(n + 1)⌉th smallest, q, with probability 1 - RISK, whatever the
distribution, all looks together. A run is hopeless when even then it would not gain what a judge wants of a first run
to look at it further: σ sinh(h(g / σ) - q w(f)) > -wanted. With fewer than 19 trials there is no such q. Once runs are
stopped, those that were let run on stand for the others by their weight (Tibshirani et al. 2019,
https://arxiv.org/abs/1904.06019); with few of them the level is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

RISK = 0.05
FEWEST = math.ceil(1 / RISK) - 1  # trials of a kind without which there is no margin
LOOKS = tuple(look / 20 for look in range(2, 17))  # shares of the budget
RUN_ON = 0.1  # share of the would-be stops that run to the end, so that it is known how many were wrong


@dataclass(frozen=True)
class Curve:
    """Training losses of a run, nats: each the mean from the `progress` of the one before to its own, ascending."""

    progress: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()

    def at(self, share: float) -> float | None:
        """Mean loss of the second half of what was spent until then; None where the run has not come so far.

        Text is uneven, and another batch size meets other text at the same share: a short window would show that.
        """
        if not self.progress or self.progress[-1] < share:
            return None
        total = weight = begin = 0.0
        for end, loss in zip(self.progress, self.loss, strict=True):
            overlap = min(end, share) - max(begin, share / 2)
            total, weight = (total + overlap * loss, weight + overlap) if overlap > 0 else (total, weight)
            begin = end
        return total / weight if weight > 0 else None


@dataclass(frozen=True)
class Pair:
    """A run beside its incumbent's on the same seed. score: the incumbent's."""

    run: Curve
    incumbent: Curve
    score: float

    @cached_property
    def gaps(self) -> Mapping[float, float]:
        """By look, as far as both have come: how much the run is behind, in the unit of scores; negative if ahead."""
        last = self.incumbent.at(self.incumbent.progress[-1]) if self.incumbent.progress else None
        both = ((share, self.run.at(share), self.incumbent.at(share)) for share in LOOKS) if last else ()
        return {
            share: (ours - theirs) * self.score / last
            for share, ours, theirs in both
            if last and ours is not None and theirs is not None
        }


@dataclass(frozen=True)
class Past:
    """A pair that ran to the end. behind: the run's score less the incumbent's, positive is worse.

    weight: how many trials like it there were; those allowed to run on stand for those that were stopped.
    """

    pair: Pair
    behind: float
    weight: float = 1.0


@dataclass(frozen=True)
class Prospect:
    """What a look has shown. share: of the budget. behind: what the run would end behind by, at least. gap: now."""

    share: float
    behind: float
    gap: float


@dataclass(frozen=True)
class Pruner:
    """incumbent: its curve, and `score` with it. past: finished trials of the same kind. sigma: of a score's noise.

    wanted: what a run has to gain to be looked at further, in the unit of scores.
    """

    incumbent: Curve
    score: float
    past: Sequence[Past]
    sigma: float
    wanted: float = 0.0

    def hopeless(self, run: Curve) -> Prospect | None:
        """The first look at which nothing was to be hoped for; None while there is hope, or no way to tell."""
        if (margin := self.margin) is None:
            return None
        for share, gap in Pair(run, self.incumbent, self.score).gaps.items():
            behind = self.sigma * math.sinh(math.asinh(gap / self.sigma) - margin * _leeway(share))
            if behind > -self.wanted:
                return Prospect(share, behind, gap)
        return None

    @cached_property
    def margin(self) -> float | None:
        """q above, not below 0; None from too few trials."""
        found = sorted((error, past.weight) for past in self.past if (error := self._overstated(past)) is not None)
        if len(found) < FEWEST:
            return None
        rank, wanted = 0.0, (1 - RISK) * (sum(weight for _, weight in found) + 1)
        for error, weight in found:
            rank += weight
            if rank >= wanted - 1e-9:
                return max(0.0, error)
        return None

    def _overstated(self, past: Past) -> float | None:
        ended = math.asinh(past.behind / self.sigma)
        gaps = past.pair.gaps.items()
        return max(((math.asinh(gap / self.sigma) - ended) / _leeway(share) for share, gap in gaps), default=None)


def _leeway(share: float) -> float:
    return 1.6 - share


def curve_of(rows: Iterable[object]) -> Curve:
    """From the rows of a run's curve.jsonl; what a run wrote may be nonsense, and is left out."""
    progress, losses = [0.0], []
    for row in rows:
        share, loss = (row.get("progress"), row.get("loss")) if isinstance(row, dict) else (None, None)
        if isinstance(share, int | float) and isinstance(loss, int | float) and progress[-1] < share <= 1:
            progress.append(float(share))
            losses.append(float(loss))
    return Curve(tuple(progress[1:]), tuple(losses))
