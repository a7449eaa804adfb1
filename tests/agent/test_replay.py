import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ledger import read
from agent.replay import Replay, as_json, as_text, replay
from agent.values import Record, Status

DATA = Path(__file__).parents[1] / "data"
FIELDS = "experiments keep discard crash reject baseline best best_commit best_description improvement frontier"


def rows(*pairs: tuple[str, float | None]) -> list[Record]:
    return [
        Record(f"{number:07x}", value, 1.0, status, f"idea {number}") for number, (status, value) in enumerate(pairs)
    ]


NIGHT = rows(
    ("keep", 1.4), ("discard", 1.41), ("keep", 1.39), ("crash", None), ("reject", 0.1), ("discard", 1.2),
    ("keep", 1.392), ("keep", 1.36), ("Weird", 1.5), ("discard", 1.37),
)  # fmt: skip


def test_a_night() -> None:
    result = replay(NIGHT)
    assert (result.experiments, result.keep, result.discard, result.crash, result.reject, result.other) == (
        10,
        4,
        3,
        1,
        1,
        1,
    )
    assert (result.baseline, result.best, result.best_commit) == (1.4, 1.36, "0000007")
    assert result.best_description == "idea 7"
    assert result.improvement == pytest.approx(0.04)
    assert [step.row for step in result.frontier] == [0, 2, 7]
    assert [step.row for step in result.top_hits] == [7, 2]
    assert result.frontier[2].gain == pytest.approx(0.03)
    assert result.keep_rate == pytest.approx(3 / 6)
    assert result.gain_per_keep == pytest.approx((0.01 - 0.002 + 0.03) / 3)
    assert (result.longest_plateau, result.plateau_from) == (4, 3)


def test_where_higher_is_better() -> None:
    upside_down = [dataclasses.replace(row, val_bpb=row.val_bpb and -row.val_bpb) for row in NIGHT]
    low, high = replay(NIGHT), replay(upside_down, "max")
    assert high.best == -1.36
    assert (high.improvement, high.keep_rate, high.longest_plateau) == (
        low.improvement,
        low.keep_rate,
        low.longest_plateau,
    )
    assert [(step.row, step.gain) for step in high.frontier] == [(step.row, step.gain) for step in low.frontier]
    assert [step.row for step in high.top_hits] == [step.row for step in low.top_hits]
    assert "-1.360000  +0.030000  idea 7" in as_text(high)


def test_a_plateau_at_the_end_counts() -> None:
    result = replay([*NIGHT, *rows(*[("discard", 1.4)] * 5)])
    assert (result.longest_plateau, result.plateau_from) == (7, 8)


def test_rows_of_another_kind_are_not_ranked() -> None:
    other = dataclasses.replace(NIGHT[2], val_bpb=0.5, hardware="H100")
    result = replay([*NIGHT, other])
    assert result.best == 1.36
    assert result.outside == 1
    assert "not ranked       1 rows" in as_text(result)


def test_nothing_kept_and_nothing_at_all() -> None:
    for records in ([], rows(("crash", None), ("discard", 1.5))):
        result = replay(records)
        assert (result.baseline, result.best, result.improvement, result.frontier) == (None, None, None, ())
        assert result.experiments == len(records)
        assert as_text(result).startswith("experiments")


def test_hours_and_dollars() -> None:
    result = replay([dataclasses.replace(record, total_seconds=720.0, cost_usd=0.25) for record in NIGHT])
    assert (result.hours, result.cost_usd) == (2.0, 2.5)
    assert "hours            2.00" in as_text(result)
    assert replay(NIGHT).hours is None


def test_a_public_ledger() -> None:
    result = replay(read(DATA / "five_columns.tsv"))
    assert (result.experiments, result.keep, result.discard, result.crash, result.reject) == (126, 23, 96, 7, 0)
    assert result.baseline == 0.9979
    assert result.frontier[0].commit == "baseline"
    assert result.best == min(step.val_bpb for step in result.frontier) > 0.9
    assert len(result.frontier) == 23


def test_a_ledger_with_odd_columns() -> None:
    records = read(DATA / "odd_columns.tsv")
    assert records[0].description == "unchanged"
    assert {record.hardware for record in records} == {"RTX 4090"}
    assert records[5].status == "TIMEOUT"
    assert records[5].val_bpb is None
    assert 0.5 < (records[0].memory_gb or 0) < 2
    result = replay(records)
    assert (result.experiments, result.crash, result.other) == (40, 1, 1)
    assert result.keep + result.discard == 38
    assert result.cost_usd == pytest.approx(40 * 0.05, rel=0.3)
    assert 0 < (result.improvement or 0) < 0.1


def test_the_examples_are_what_their_generator_makes(tmp_path: Path) -> None:
    generator = tmp_path / "make_ledgers.py"
    generator.write_text((DATA / "make_ledgers.py").read_text())
    subprocess.run([sys.executable, generator], check=True)
    for name in ("five_columns.tsv", "odd_columns.tsv"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


def test_json_has_the_promised_fields_and_is_json() -> None:
    facts = as_json(replay(NIGHT))
    assert set(FIELDS.split()) <= facts.keys()
    assert facts.keys() == {field.name for field in dataclasses.fields(Replay)}
    assert json.loads(json.dumps(facts))["frontier"][1]["description"] == "idea 2"


def test_text_names_the_best_and_the_hits() -> None:
    text = as_text(replay(NIGHT))
    assert "best             1.360000  0000007  idea 7" in text
    assert "improvement      0.040000  (2.86%)" in text
    assert "-0.030000  idea 7" in text


statuses = st.sampled_from([*Status, "odd"])
records = st.lists(st.tuples(statuses, st.none() | st.floats(0.1, 10)), max_size=30).map(lambda pairs: rows(*pairs))


@given(records)
def test_what_always_holds(night: list[Record]) -> None:
    result = replay(night)
    assert (
        result.keep + result.discard + result.crash + result.reject + result.other == result.experiments == len(night)
    )
    kept = [record.val_bpb for record in night if record.status == "keep" and record.val_bpb is not None]
    assert result.best == (min(kept) if kept else None)
    assert result.baseline == (kept[0] if kept else None)
    values = [step.val_bpb for step in result.frontier]
    assert values == sorted(values, reverse=True)
    assert math.isclose(sum(step.gain for step in result.frontier), result.improvement or 0, abs_tol=1e-9)
    assert result.longest_plateau <= len(night)
