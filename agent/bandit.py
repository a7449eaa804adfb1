"""Whose turn it is among several proposers: those that earn most keeps for a second of training, and all of them a bit.

Thompson sampling (Thompson 1933; Russo et al. 2018, https://arxiv.org/abs/1707.02038): each proposer's chance of a keep
is drawn from a beta distribution of its keeps and misses, uniform before there are any, and divided by what its trials
take. The largest wins. With FLOOR for each, the turn is drawn without looking: a night changes what pays. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import fmean

from agent.ledger import kept
from agent.values import Record, Status

FLOOR = 0.1  # of the turns, for each proposer
USUAL_SECONDS = 1.0  # where nobody has been timed


def turn(names: Sequence[str], records: Sequence[Record], seed: int) -> str:
    """One of `names`. The same for the same rows and seed, so that a session that goes on chooses as it would have."""
    rng = Random(f"{seed} {len(records)}")  # noqa: S311 - a lottery of proposers, no secret
    if rng.random() < FLOOR * len(names):
        return rng.choice(names)
    usual = _seconds(records) or USUAL_SECONDS
    worth = {name: _worth([record for record in records if record.proposer == name], usual, rng) for name in names}
    return max(names, key=lambda name: worth[name])


def _worth(own: Sequence[Record], usual: float, rng: Random) -> float:
    """Keeps a second, drawn. A reject is a turn without a keep."""
    keeps = sum(map(kept, own))
    return rng.betavariate(1 + keeps, 1 + len(own) - keeps) / (_seconds(own) or usual)


def _seconds(records: Sequence[Record]) -> float | None:
    """Mean of the trials that ran."""
    ran = [record.total_seconds for record in records if record.status != Status.REJECT and record.total_seconds]
    return fmean(ran) if ran else None
