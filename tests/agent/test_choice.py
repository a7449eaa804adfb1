"""Which of several models is asked: often the one that gives more for a dollar, each one sometimes."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.proposers.choice import FLOOR, NOMINAL_USD, Past, choose

NEW = Past(0, 0, 0.0, 0.05)


def shares(pasts: dict[str, Past], count: int = 2000) -> dict[str, float]:
    chosen = Counter(choose(pasts, f"42 {n}") for n in range(count))
    return {name: chosen[name] / count for name in pasts}


def test_what_is_not_known_is_tried_alike() -> None:
    assert shares({"a": NEW, "b": NEW, "c": NEW}) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, abs=0.05)


def test_more_keeps_for_the_same_dollars_are_preferred() -> None:
    found = shares({"good": Past(40, 12, 2.0, 0.05), "poor": Past(40, 2, 2.0, 0.05)})
    assert found["good"] > 0.85


def test_dollars_count() -> None:
    """Twice the keeps, at twenty times the price."""
    found = shares({"dear": Past(40, 8, 40.0, 1.0), "cheap": Past(40, 4, 2.0, 0.05)})
    assert found["cheap"] > 0.85


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_has_its_floor(count: int) -> None:
    hopeless = {f"poor{n}": Past(500, 0, 500.0, 1.0) for n in range(count - 1)}
    found = shares({"good": Past(500, 250, 5.0, 0.01), **hopeless})
    assert min(found.values()) == pytest.approx(FLOOR, abs=0.03)


def test_a_free_model_costs_a_nominal_cent() -> None:
    free = Past(10, 1, 0.0, 0.0)
    assert free.usd_a_turn == NOMINAL_USD
    assert shares({"free": free, "paid": Past(10, 8, 0.11, 0.01)})["paid"] > 0.7


def test_what_a_turn_should_cost_counts_once() -> None:
    assert Past(0, 0, 0.0, 0.4).usd_a_turn == 0.4
    assert Past(9, 0, 0.9, 0.4).usd_a_turn == pytest.approx(0.13)


def test_the_same_seed_chooses_the_same() -> None:
    pasts = {"a": NEW, "b": NEW}
    first = [choose(pasts, f"{n}") for n in range(50)]
    assert first == [choose(pasts, f"{n}") for n in range(50)]
    assert len(set(first)) == 2
