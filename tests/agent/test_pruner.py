"""The rule on curves whose ends are known, and its promise by simulation: few of those it stops would have won."""

from __future__ import annotations

import math
import random

import pytest

from agent.pruner import FEWEST, RISK, Curve, Pair, Past, Pruner, curve_of

SHARES = tuple(step / 50 for step in range(1, 51))
FLAT = Curve(SHARES, tuple(4.0 - 2.0 * share for share in SHARES))
SCORE, SIGMA = 1.0, 0.01


def behind(gap: float, until: float = 1.0) -> Curve:
    """As FLAT, but `gap` nats worse up to a share of the budget."""
    return Curve(SHARES, tuple(loss + gap * (share <= until) for share, loss in zip(SHARES, FLAT.loss, strict=True)))


def part(curve: Curve, share: float) -> Curve:
    count = sum(progress <= share for progress in curve.progress)
    return Curve(curve.progress[:count], curve.loss[:count])


def past(gap: float, ended: float, weight: float = 1.0) -> Past:
    return Past(Pair(behind(gap), FLAT, SCORE), ended, weight)


def test_a_loss_is_the_mean_of_the_second_half_so_far_whatever_the_steps() -> None:
    coarse = Curve((0.4, 0.8), (3.0, 1.0))
    assert coarse.at(0.4) == pytest.approx(3.0)
    assert coarse.at(0.8) == pytest.approx(1.0)
    assert coarse.at(0.6) == pytest.approx((0.1 * 3.0 + 0.2 * 1.0) / 0.3)
    assert coarse.at(0.81) is None
    assert Curve().at(0.1) is None


def test_no_margin_from_fewer_than_nineteen_and_then_the_worst_of_them() -> None:
    assert FEWEST == 19
    hopeless = behind(2.0)
    few = Pruner(FLAT, SCORE, [past(0.0, 0.0)] * 18, SIGMA)
    assert few.margin is None
    assert few.hopeless(hopeless) is None
    enough = Pruner(FLAT, SCORE, [past(0.0, 0.0)] * 19, SIGMA)
    assert enough.margin == 0.0
    found = enough.hopeless(hopeless)
    assert found is not None
    assert found.share == 0.1
    assert found.behind > 0
    one_odd = [past(0.0, 0.0)] * 18 + [past(0.5, -0.2)]  # which looked bad, and won
    assert (Pruner(FLAT, SCORE, one_odd, SIGMA).margin or 0) > 3
    assert Pruner(FLAT, SCORE, one_odd, SIGMA).hopeless(behind(0.1)) is None


def test_what_was_let_run_on_counts_for_what_was_stopped() -> None:
    usual = [past(0.0, 0.0)] * 40
    assert Pruner(FLAT, SCORE, [*usual, past(0.5, -0.2)], SIGMA).margin == 0.0
    assert (Pruner(FLAT, SCORE, [*usual, past(0.5, -0.2, weight=10.0)], SIGMA).margin or 0) > 3


def test_a_run_ahead_or_level_goes_on_and_a_look_needs_the_curve_to_have_come_so_far() -> None:
    pruner = Pruner(FLAT, SCORE, [past(0.0, 0.0)] * 19, SIGMA)
    assert pruner.hopeless(behind(-0.5)) is None
    assert pruner.hopeless(FLAT) is None
    assert pruner.hopeless(part(behind(2.0), 0.09)) is None
    assert pruner.hopeless(part(behind(2.0), 0.1)) is not None
    assert pruner.hopeless(Curve()) is None
    assert Pruner(Curve(), SCORE, pruner.past, SIGMA).hopeless(behind(2.0)) is None


def test_the_odds_hold_over_all_looks_together() -> None:
    """Gaps drift as random walks, so that early looks deceive; of winners at most RISK are stopped, and some are."""
    rng = random.Random(7)

    def trial() -> Past:
        gap, losses = rng.gauss(0.3, 0.4), []
        for loss in FLAT.loss:
            gap += rng.gauss(0.0, 0.04)
            losses.append(loss + gap)
        return Past(Pair(Curve(SHARES, tuple(losses)), FLAT, SCORE), gap / 2 + rng.gauss(0.0, 0.02))

    stopped = wrong = winners = 0
    for _ in range(60):
        pruner = Pruner(FLAT, SCORE, [trial() for _ in range(39)], 0.05)
        for _ in range(20):
            one = trial()
            found = pruner.hopeless(one.pair.run) is not None
            winners += one.behind <= 0
            stopped, wrong = stopped + found, wrong + (found and one.behind <= 0)
    assert wrong <= RISK * 1200
    assert winners > 150
    assert stopped > 300


def test_nonsense_in_a_curve_is_left_out() -> None:
    rows: list[object] = [
        {"progress": 0.1, "loss": 3.0},
        {"progress": 0.1, "loss": 9.0},
        {"progress": None, "loss": 1.0},
        {"progress": 0.3, "loss": None},
        {"progress": 7, "loss": 1.0},
        {"loss": 1.0},
        [0.35, 1.0],
        {"progress": 0.4, "loss": 2},
    ]
    assert curve_of(rows) == Curve((0.1, 0.4), (3.0, 2.0))
    assert not math.isnan(curve_of(rows).at(0.4) or math.nan)


def test_what_a_judge_would_not_look_at_again_is_hopeless_too() -> None:
    """A run level with the incumbent, where early looks have never overstated: hopeless only if a gain is wanted."""
    usual = [past(0.0, 0.0)] * 19
    assert Pruner(FLAT, SCORE, usual, SIGMA).hopeless(FLAT) is None
    found = Pruner(FLAT, SCORE, usual, SIGMA, wanted=SIGMA / 2).hopeless(FLAT)
    assert found is not None
    assert found.behind == 0.0
    ahead = Curve(FLAT.progress, tuple(loss - 0.1 for loss in FLAT.loss))
    assert Pruner(FLAT, SCORE, usual, SIGMA, wanted=SIGMA / 2).hopeless(ahead) is None
