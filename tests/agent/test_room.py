"""Memory of what follows a law, predicted: inside what was seen, and beyond it."""

import random

from agent.constants import Value
from agent.proposers.room import FEWEST, predicted


def point(depth: int, width: int, rate: float = 0.1) -> dict[str, Value]:
    return {"DEPTH": depth, "WIDTH": width, "RATE": rate, "PATTERN": "L"}


def memory(values: dict[str, Value]) -> float:
    return 0.1 * float(values["DEPTH"]) * float(values["WIDTH"]) / 64  # type: ignore[arg-type]


def seen(count: int) -> list[tuple[dict[str, Value], float]]:
    rng = random.Random(3)
    points = [point(rng.randint(1, 8), rng.choice((64, 128, 256)), rng.random()) for _ in range(count)]
    return [(one, memory(one) * rng.uniform(0.97, 1.03)) for one in points]


def test_nothing_is_said_of_few_trials_or_of_other_constants() -> None:
    assert predicted(seen(FEWEST - 1), point(2, 64)) is None
    assert predicted([({"OTHER": 3}, 1.0)] * 9, point(2, 64)) is None


def test_a_law_of_sizes_is_found_within_a_tenth_and_continued_beyond_what_was_seen() -> None:
    for wanted in (point(3, 128), point(8, 64), point(16, 512)):
        guess = predicted(seen(30), wanted)
        assert guess is not None
        assert abs(guess / memory(wanted) - 1) < 0.1


def test_a_constant_that_takes_no_memory_is_not_blamed() -> None:
    low, high = predicted(seen(30), point(4, 128, 0.001)), predicted(seen(30), point(4, 128, 1.0))
    assert low is not None
    assert high is not None
    assert abs(low / high - 1) < 0.1


def test_one_that_was_never_turned_counts_for_nothing() -> None:
    known = [(values | {"BATCH": 8}, taken) for values, taken in seen(30)]
    guesses = [predicted(known, point(4, 128) | {"BATCH": batch}) for batch in (8, 64)]
    assert guesses[0] == guesses[1]
