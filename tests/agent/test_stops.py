"""When a session begins no further trial, and what it says then."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from agent.config import Settings, stop_time
from agent.errors import UsageError
from agent.stops import REJECTS_IN_A_ROW, Stop, experiments, spent
from agent.values import Record

BASELINE = Record("0" * 7, 1.0, 0.1, "keep", "baseline", trial=0)
EVENING = datetime(2026, 11, 21, 22, 30, 15)


def rows(*statuses: str, cost: float | None = None) -> list[Record]:
    """The baseline and one row for each status."""
    made = [replace(BASELINE, status=status, trial=n, cost_usd=cost) for n, status in enumerate(statuses, 1)]
    return [BASELINE, *made]


@pytest.mark.parametrize(
    ("statuses", "in_flight", "says"),
    [
        ((), 0, None),
        (("keep", "discard"), 0, None),
        (("keep", "reject", "discard", "reject"), 0, None),
        (("keep", "discard", "crash"), 0, "3 experiments done"),
        (("keep", "discard"), 1, "3 experiments done"),
        (("keep", "reject", "discard", "crash", "keep"), 0, "4 experiments done"),
    ],
)
def test_experiments_are_trials_that_ran_or_run_besides_the_baseline(
    statuses: tuple[str, ...], in_flight: int, says: str | None
) -> None:
    assert Stop(experiments=3).reason(rows(*statuses), in_flight, EVENING) == says


def test_no_experiments_is_a_baseline_and_nothing_more() -> None:
    assert Stop(experiments=0).reason([BASELINE], 0, EVENING) == "0 experiments done"
    assert experiments(rows("keep", "reject")) == 1


@pytest.mark.parametrize(("cost", "says"), [(0.24, None), (0.25, "$0.50 spent"), (0.4, "$0.80 spent")])
def test_dollars_of_every_row_count_rejects_included(cost: float, says: str | None) -> None:
    assert Stop(max_usd=0.5).reason(rows("discard", "reject", cost=cost), 0, EVENING) == says


def test_what_no_row_knows_the_price_of_costs_nothing() -> None:
    assert spent(rows("keep", "crash")) == 0.0
    assert Stop(max_usd=0.01).reason(rows("keep", "crash"), 0, EVENING) is None


def test_no_dollars_allow_no_request() -> None:
    assert Stop(max_usd=0.0).reason([BASELINE], 0, EVENING) == "$0.00 spent"
    assert not Stop(max_usd=0.0).affords(0.0)
    assert Stop().affords(1e6)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (datetime(2026, 11, 22, 6, 59, 59), None),
        (datetime(2026, 11, 22, 7, 0), "it is 07:00"),
        (datetime(2026, 11, 22, 9, 5), "it is 09:05"),
    ],
)
def test_a_time_is_over_from_its_first_second(now: datetime, says: str | None) -> None:
    assert Stop(until=datetime(2026, 11, 22, 7, 0)).reason([BASELINE], 0, now) == says


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("23:45", datetime(2026, 11, 21, 23, 45)),
        ("22:31", datetime(2026, 11, 21, 22, 31)),
        ("22:30", datetime(2026, 11, 22, 22, 30)),
        ("07:00", datetime(2026, 11, 22, 7, 0)),
        ("7:00", datetime(2026, 11, 22, 7, 0)),
        ("00:00", datetime(2026, 11, 22, 0, 0)),
    ],
    ids=["today", "in-seconds", "this-minute", "tomorrow", "one-digit", "midnight"],
)
def test_a_time_that_has_passed_is_tomorrows(until: str, expected: datetime) -> None:
    assert stop_time(until, EVENING) == expected
    assert Settings(until=until).until == until


def test_the_last_day_of_a_month_and_of_a_year_have_a_tomorrow() -> None:
    assert stop_time("07:00", datetime(2026, 11, 30, 23, 0)) == datetime(2026, 12, 1, 7, 0)
    assert stop_time("07:00", datetime(2026, 12, 31, 23, 0)) == datetime(2027, 1, 1, 7, 0)


@pytest.mark.parametrize("until", ["7am", "24:00", "07:60", "7", "", "07:00:00", " 07:00", "-1:00", "7.00", "tomorrow"])
def test_bad_times_get_one_line(until: str) -> None:
    with pytest.raises(UsageError, match=r"^until: expected a time like 07:00, found ") as caught:
        Settings(until=until)
    assert str(caught.value).endswith(repr(until))


def test_rejects_in_a_row_end_a_run_and_only_those_of_this_run_count() -> None:
    many = rows(*["reject"] * REJECTS_IN_A_ROW)
    assert Stop().reason(many, 0, EVENING) == "25 proposals in a row were rejected; see `overnight history`"
    assert Stop().reason(many, 0, EVENING, since=2) is None
    assert Stop().reason([*many[:-1], replace(BASELINE, trial=25)], 0, EVENING) is None
    assert Stop().reason([*many, replace(BASELINE, trial=26, status="crash")], 0, EVENING) is None
