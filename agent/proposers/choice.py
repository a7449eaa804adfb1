"""Which of several models is asked next: by confirmed keeps for a dollar, as far as they are known. Pure.

Thompson sampling: a model's chance that a turn is kept is drawn from Beta(1 + keeps, 1 + others), which is the uniform
prior and what its turns have shown (Chapelle and Li 2011, https://papers.nips.cc/paper/4321), and divided by what a
turn costs, as for bandits on a budget (Xia and others 2015, https://arxiv.org/abs/1505.00146). The highest is asked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

FLOOR = 0.1  # of the turns, each; so a model that began unluckily, or has become better with the code, is seen again
NOMINAL_USD = 0.01  # a turn costs at least this: else a free model would win whatever it is worth


@dataclass(frozen=True)
class Past:
    """What one model did in this session. turns: rows of its proposals, rejects too. usd: what they cost in all.
    expected_usd: what a turn should cost by its price, which counts as one turn more."""

    turns: int
    keeps: int
    usd: float
    expected_usd: float

    @property
    def usd_a_turn(self) -> float:
        return max(NOMINAL_USD, (self.usd + self.expected_usd) / (self.turns + 1))


def choose(pasts: Mapping[str, Past], seed: str) -> str:
    """One of the names, the same for the same seed and pasts."""
    rng, names = random.Random(seed), list(pasts)
    if rng.random() < FLOOR * len(names):
        return rng.choice(names)
    return max(names, key=lambda name: _drawn(pasts[name], rng))


def _drawn(past: Past, rng: random.Random) -> float:
    """Keeps for a dollar, from what may be true of it."""
    return rng.betavariate(1 + past.keeps, 1 + past.turns - past.keeps) / past.usd_a_turn
