import dataclasses
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StateError
from agent.ledger import COLUMNS, Ledger, comparable, format_row, incumbent, parse, read
from agent.values import Record, Status

DATA = Path(__file__).parents[1] / "data"
ROOT = Path(__file__).parents[2]

BASELINE = Record("0123456789abcdef0123456789abcdef01234567", 1.399, 1.25, Status.KEEP, "baseline", trial=0)


def row(status: str = "discard", val_bpb: float | None = 1.4, **more: Any) -> Record:
    return dataclasses.replace(BASELINE, status=status, val_bpb=val_bpb, **more)


def test_columns_are_the_record_in_its_order() -> None:
    assert tuple(field.name for field in dataclasses.fields(Record)) == COLUMNS


def test_a_row_looks_like_the_fields_rows() -> None:
    assert format_row(BASELINE).startswith("0123456\t1.399000\t1.2\tkeep\tbaseline\t0\t")
    empty = Record(None, None, None, Status.REJECT, "a\tb\nc\x1b[2Jd\u2028e")
    assert format_row(empty).split("\t")[:5] == ["-------", "0.000000", "0.0", "reject", "a b c [2Jd e"]


text = st.text(max_size=40)
number = st.none() | st.floats(allow_nan=True)
records = st.builds(
    Record,
    commit=st.none() | st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
    val_bpb=st.none() | st.floats(1e-6, 100),
    memory_gb=st.none() | st.floats(0, 1000),
    status=st.sampled_from(list(Status)),
    description=text,
    trial=st.none() | st.integers(0, 10**6),
    parent=st.none() | st.from_regex(r"[0-9a-f]{7}", fullmatch=True),
    proposer=text,
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    n=st.none() | st.integers(0, 99),
    sigma=number,
    total_seconds=number,
    tokens_M=number,
    cost_usd=number,
    hardware=text,
    reason=text,
)


@given(st.lists(records, min_size=1, max_size=5))
def test_round_trip(rows: list[Record]) -> None:
    written = "\n".join(["\t".join(COLUMNS), *map(format_row, rows)])
    again = parse(written)
    assert len(again) == len(rows)
    for before, after in zip(rows, again, strict=True):
        assert (after.status, after.trial, after.seed, after.n) == (before.status, before.trial, before.seed, before.n)
        assert after.commit == (before.commit and before.commit[:7])
        assert (before.val_bpb or 0) == pytest.approx(after.val_bpb or 0, abs=5.1e-7)
    assert parse("\n".join(["\t".join(COLUMNS), *map(format_row, again)])) == again


@given(st.text())
def test_any_text_is_rows_or_one_line_of_error(content: str) -> None:
    message = ""
    try:
        parse(content)
    except StateError as error:
        message = str(error)
    assert "\n" not in message


def test_append_then_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "results.tsv")
    assert ledger.records() == ()
    ledger.append(BASELINE)
    ledger.append(row("crash", None, trial=1))
    lines = ledger.path.read_text().splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    assert [record.trial for record in ledger.records()] == [0, 1]
    assert ledger.records()[1].val_bpb is None
    assert read(ledger.path) == read(str(ledger.path)) == read(ledger.path.read_text()) == ledger.records()


def test_half_a_row_is_invisible_and_repair_drops_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.tsv")
    assert ledger.repair() is None
    ledger.append(BASELINE)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b"89abcde\t1.3")
    assert len(ledger.records()) == 1
    with pytest.raises(StateError, match="half a row"):
        ledger.append(BASELINE)
    assert ledger.repair() == "89abcde\t1.3"
    assert ledger.path.read_bytes() == whole
    assert ledger.repair() is None


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.tsv")
    ledger.path.write_bytes(b"commit\tval_")
    assert ledger.records() == ()
    assert ledger.repair() == "commit\tval_"
    ledger.append(BASELINE)
    assert len(ledger.records()) == 1


def test_a_foreign_ledger_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("commit\tval_bpb\n")
    with pytest.raises(StateError, match="move the file away"):
        Ledger(path).append(BASELINE)
    assert path.read_text() == "commit\tval_bpb\n"


def appended_under(path: Path, setup: str) -> str:
    """Append to `path` in a child that first runs `setup`; the error it printed."""
    code = f"""
import os, resource, pathlib
from agent.errors import StateError
from agent.ledger import Ledger
from agent.values import Record
{setup}
try:
    Ledger(pathlib.Path({str(path)!r})).append(Record("abcdef0", 1.5, 1.0, "keep", "x" * 500))
except StateError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_row_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.tsv")
    ledger.append(BASELINE)
    before = ledger.path.read_bytes()
    limit = len(before) + 100  # the kernel writes these 100 bytes, then refuses
    error = appended_under(
        ledger.path, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))"
    )
    assert "resume" in error
    assert error.count("\n") == 1
    assert ledger.path.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_so() -> None:
    with pytest.raises(StateError, match="free some disk space"):
        Ledger(Path("/dev/full")).append(BASELINE)


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.tsv")
    ledger.append(BASELINE)
    ledger.path.chmod(0o444)
    assert "chmod" in appended_under(ledger.path, "os.getuid() == 0 and os.setuid(65534)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\0\0", "binary"),
        (b"", "found nothing"),
        (b"hello world\nthis is prose\n", "expected columns commit val_bpb"),
        (b"name\tage\tcity\nann\t3\tulm\n", "expected columns"),
    ],
)
def test_what_is_no_ledger(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    with pytest.raises(StateError, match=message):
        read(path)


def test_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        read(tmp_path / "none.tsv")
    with pytest.raises(StateError, match="Is a directory"):
        read(tmp_path)


def test_order_case_aliases_and_unknown_columns() -> None:
    (record,) = parse("Status\tDesc\tcolour\tpeak_memory_mb\tBPB\tSHA\nKEPT\tmore depth\tred\t2048\t0.99\tabcdef0\n")
    assert record == Record("abcdef0", 0.99, 2.0, "keep", "more depth")


@pytest.mark.parametrize("alias", ["score", "bpb", "loss", "metric", "result", "val_loss"])
def test_value_aliases(alias: str) -> None:
    (record,) = parse(f"commit\t{alias}\tstatus\nabcdef0\t0.5\tkeep")
    assert (record.val_bpb, record.status) == (0.5, "keep")


@pytest.mark.parametrize(("alias", "factor"), [("mem", 1), ("vram_gb", 1), ("peak_vram_mb", 1024), ("memory_mb", 1024)])
def test_memory_aliases(alias: str, factor: int) -> None:
    (record,) = parse(f"commit\tval_bpb\t{alias}\nabcdef0\t0.5\t4096")
    assert record.memory_gb == 4096 / factor


def test_result_may_be_the_status() -> None:
    (record,) = parse("commit\tval_bpb\tresult\nabcdef0\t0.5\tDiscarded")
    assert (record.val_bpb, record.status) == (0.5, "discard")


def test_own_name_beats_alias() -> None:
    (record,) = parse("loss\tval_bpb\tstatus\n3.1\t0.5\tkeep")
    assert record.val_bpb == 0.5


def test_unknown_cells_and_statuses() -> None:
    rows = parse("\ufeffcommit\tval_bpb\tmemory_gb\tstatus\tdescription\r\nbaseline\t0.99\t44.0\tKEEP\tNA\r\n"
                 "NA\tNA\t-\tWeird Status\t\r\nabcdef0\t0.000000\t0.0\tcrash\tOOM\r\n\r\nabcdef1\tinf\n")  # fmt: skip
    assert rows[0] == Record("baseline", 0.99, 44.0, "keep", "NA")
    assert rows[1] == Record(None, None, None, "Weird Status", "")
    assert rows[2] == Record("abcdef0", None, None, "crash", "OOM")
    assert rows[3] == Record("abcdef1", None, None, "", "")


def test_no_header_means_the_fields_order() -> None:
    (record,) = parse("abcdef0\t0.99\t44.0\tkeep\tbaseline")
    assert record == Record("abcdef0", 0.99, 44.0, "keep", "baseline")


def test_repeated_headers_comments_and_tabs_in_prose() -> None:
    head = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
    rows = parse(f"# my runs\n{head}a\t1.0\t1\tkeep\tx\ty\n{head}b\t1.1\t1\tdiscard\tz\n")
    assert [record.description for record in rows] == ["x y", "z"]


def test_incumbent_is_the_last_keep_not_the_minimum() -> None:
    rows = (BASELINE, row("keep", 1.2, trial=1), row("keep", 1.3, trial=2), row("discard", 1.1, trial=3))
    found = incumbent(rows)
    assert found is not None
    assert found.trial == 2
    assert incumbent(()) is None


def test_comparable() -> None:
    assert comparable(BASELINE, row(val_bpb=2.0))
    for other in (row(data="x"), row(budget="x"), row(hardware="x"), row(torch="x")):
        assert not comparable(BASELINE, other)
