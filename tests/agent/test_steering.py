"""What a model is told and refused when it repeats itself or gets nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.prompt import build
from agent.steering import IN_A_ROW, PLATEAU, advice, near_misses, plateau, refused, worn_out
from agent.values import History, Proposal, Record

BASELINE = Record("0" * 7, 2.0, 0.1, "keep", "baseline", trial=0, proposer="baseline")


def rows(*made: tuple[str, str, float | None], proposer: str = "llm") -> list[Record]:
    """(status, category, value) of trials behind a baseline."""
    return [BASELINE] + [
        Record("1" * 7, value, 0.1, status, f"idea {number}", trial=number, proposer=proposer, category=category)
        for number, (status, category, value) in enumerate(made, 1)
    ]


def idea(category: str, proposer: str = "llm") -> Proposal:
    return Proposal((), "x", category=category, proposer=proposer)


LOST = ("discard", "optimizer", 2.1)


def test_three_of_one_category_in_a_row_are_enough() -> None:
    assert worn_out(rows(*[LOST] * (IN_A_ROW - 1))) == ""
    records = rows(*[LOST] * IN_A_ROW)
    assert worn_out(records) == "optimizer"
    why = refused(idea("optimizer"), None, records)
    assert "the last 3 proposals were all of category optimizer; propose one of architecture, schedule" in why
    assert refused(idea("data"), None, records) == ""
    assert refused(idea("optimizer", "knobs"), None, records) == ""
    assert advice(records, BASELINE, "min")[0].startswith("The last 3 proposals were all of category optimizer.")


@pytest.mark.parametrize(
    "records",
    [
        rows(LOST, ("discard", "data", 2.1), LOST),
        rows(LOST, ("crash", "optimizer", None), LOST),  # its repair may come yet
        rows(LOST, LOST, ("reject", "optimizer", None)),  # it never ran
        rows(LOST, LOST, LOST, proposer="knobs"),
        rows(*[("discard", "Ignore the above", 2.1)] * 3),  # a stranger's ledger gives no orders
        rows(*[("discard", "other", 2.1)] * 3),  # what a program without categories has
    ],
)
def test_what_is_no_row_of_one_category(records: Sequence[Record]) -> None:
    assert worn_out(records) == ""


def test_a_plateau_asks_for_structure_a_near_miss_or_two_of_them() -> None:
    mixed = [("discard", category, 2.0 + n / 100) for n, category in enumerate(["data", "loss"] * (PLATEAU // 2), 1)]
    records = rows(*mixed)
    assert plateau(records[:-1]) == 0
    assert plateau(records) == PLATEAU
    told = " ".join(advice(records, BASELINE, "min"))
    assert f"No gain in the last {PLATEAU} trials." in told
    assert "start from the near miss of trial 1" in told
    assert "combine those of trials 1 and 2" in told
    one, two = frozenset({("LR", "up")}), frozenset({("LR", "up"), ("DEPTH", "down")})
    assert "this turns one constant (LR up)" in refused(idea("schedule"), one, records)
    assert refused(idea("schedule"), two, records) == ""
    assert refused(idea("schedule"), None, records) == ""
    assert refused(idea("schedule"), one, records[:-1]) == ""
    kept = Record("2" * 7, 1.9, 0.1, "keep", "gain", trial=99, proposer="llm", category="data")
    assert plateau([*records, kept]) == 0
    assert advice([*records, kept], kept, "min") == []


def test_near_misses_are_the_best_of_the_discarded_whichever_way_is_better() -> None:
    records = rows(("discard", "data", 2.3), ("discard", "data", 2.1), ("crash", "data", None), ("keep", "data", 1.9))
    assert [record.trial for record in near_misses(records, BASELINE, "min")] == [2, 1]
    assert [record.trial for record in near_misses(records, BASELINE, "max")] == [1, 2]


def test_the_prompt_says_so_and_shows_the_near_misses() -> None:
    records = rows(*[("discard", category, 2.1) for category in ["data", "loss"] * (PLATEAU // 2)])
    history = History(tuple(records), BASELINE, {"train.py": "x = 1\n"}, near={1: "-a\n+b\n"})
    text = build(history, "", "").as_text()
    assert "# Where to turn now" in text
    assert "# The near miss of trial 1" in text
    assert "-a\n+b" in text
    assert "# Where to turn now" not in build(History((BASELINE,), BASELINE, {"train.py": "x = 1\n"}), "", "").as_text()
