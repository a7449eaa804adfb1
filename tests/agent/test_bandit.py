from collections import Counter
from dataclasses import replace

from agent.bandit import FLOOR, turn
from agent.values import Record, Status

ROW = Record("0123456", 1.0, 1.0, Status.DISCARD, "an idea", total_seconds=60.0)
KEEP = replace(ROW, status=Status.KEEP)


def turns(rows: list[Record], names: tuple[str, ...] = ("a", "b")) -> Counter[str]:
    """Of many seeds with the same rows."""
    return Counter(turn(names, rows, seed) for seed in range(2000))


def by(name: str, keeps: int, misses: int, seconds: float = 60.0) -> list[Record]:
    rows = [KEEP] * keeps + [ROW] * misses
    return [replace(row, proposer=name, total_seconds=seconds) for row in rows]


def test_nobody_is_preferred_before_there_are_rows() -> None:
    assert abs(turns([])["a"] - 1000) < 120


def test_who_earns_keeps_gets_most_turns_and_the_others_keep_their_floor() -> None:
    found = turns(by("a", 10, 10) + by("b", 0, 20))
    assert found["a"] > 1700
    assert found["b"] > 2000 * FLOOR * 0.8


def test_what_counts_is_keeps_a_second() -> None:
    found = turns(by("a", 8, 8, seconds=300.0) + by("b", 4, 12, seconds=60.0))
    assert found["b"] > found["a"]


def test_the_same_rows_and_seed_give_the_same_turn() -> None:
    rows = by("a", 2, 3) + by("b", 1, 1)
    assert [turn(("a", "b"), rows, seed) for seed in range(50)] == [turn(("a", "b"), rows, seed) for seed in range(50)]
    assert len({turn(("a", "b"), rows[:count], 7) for count in range(7)}) == 2, "every row draws anew"


def test_rejects_cost_a_turn_and_no_seconds() -> None:
    rejects = [replace(ROW, proposer="a", status=Status.REJECT, total_seconds=None)] * 20
    found = turns(rejects + by("b", 2, 2))
    assert found["b"] > 1600
