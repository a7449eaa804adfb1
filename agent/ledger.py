"""results.tsv: one row per trial, only ever appended to, the source of truth of a session.

Writing is strict (one column order, one write and one fsync a row); reading is tolerant, because people bring ledgers
of other tools: columns are found by name, in any order, some missing, some unknown.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agent.errors import StateError, because
from agent.values import Record, Status

COLUMNS = (
    *("commit", "val_bpb", "memory_gb", "status", "description"),  # the five the field shares
    *("trial", "parent", "proposer", "category", "budget", "seed", "n", "sigma", "fraction", "train_seconds"),
    *("total_seconds", "tokens_M", "tflop", "cost_usd", "hardware", "slot", "torch", "data", "reason"),
)
NO_COMMIT = "-------"

_INTEGERS = {field.name for field in fields(Record) if field.type == "int | None"}
_FLOATS = {field.name for field in fields(Record) if field.type == "float | None"}
_PROSE = {"description", "reason", "status"}  # "NA" and "-" are words here, not gaps
_UNKNOWN = {"", "-", "--", "na", "n/a", "nan", "none", "null", NO_COMMIT}

# Other spellings of a column, best first; the column's own name comes before them all.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "commit": ("hash", "sha", "git_commit", "commit_hash"),
    "val_bpb": ("bpb", "valid_bpb", "validation_bpb", "best_val_bpb", "val_loss", "score", "metric", "loss", "result"),
    "memory_gb": ("mem_gb", "vram_gb", "peak_vram_gb", "peak_memory_gb", "memory", "mem", "vram"),
    "status": ("decision", "verdict", "outcome", "result"),
    "description": ("desc", "notes", "note", "change", "experiment", "idea", "summary"),
    "trial": ("trial_id", "experiment_id", "exp", "iteration", "iter", "run", "step", "id", "#"),
    "parent": ("parent_commit", "base"),
    "proposer": ("agent", "model", "author"),
    "category": ("type", "kind"),
    "n": ("runs", "seeds"),
    "sigma": ("std", "stdev", "val_bpb_std"),
    "train_seconds": ("training_seconds", "train_time_s", "train_s"),
    "total_seconds": ("seconds", "duration_s", "elapsed_s", "time_s", "wall_s"),
    "tokens_M": ("tokens_m", "total_tokens_m"),
    "cost_usd": ("cost", "usd"),
    "hardware": ("gpu", "device", "platform"),
    "data": ("data_id", "dataset"),
}
_MEGABYTES = ("peak_memory_mb", "peak_vram_mb", "memory_mb", "vram_mb", "mem_mb", "peak_mem_mb")
_STATUSES = {"kept": "keep", "discarded": "discard", "crashed": "crash", "rejected": "reject"}

# Anything that would break a row or write over a terminal: C0, C1, line separators, direction overrides, surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NUMBER = re.compile(r"[~$]?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*[A-Za-z%]*")
_HEX = re.compile(r"[0-9a-f]{7,40}")


def format_row(record: Record) -> str:
    """One line without its newline: the columns of COLUMNS, separated by tabs."""
    return "\t".join(_format_cell(column, getattr(record, column)) for column in COLUMNS)


def as_read(record: Record) -> Record:
    """The row as whoever reads the file will have it: no digit more than is written."""
    return parse("\t".join(COLUMNS) + "\n" + format_row(record))[0]


def kept(record: Record) -> bool:
    """Whether this row became the incumbent. Some public ledgers call the first row's status `baseline`."""
    return record.status in (Status.KEEP, "baseline")


def incumbent(records: Iterable[Record]) -> Record | None:
    """The last kept row, which need not be the lowest number ever measured."""
    return next((record for record in reversed(tuple(records)) if kept(record)), None)


def comparable(a: Record, b: Record) -> bool:
    """Whether the two numbers may be ranked together: same data id, budget, hardware and torch version."""
    return (a.data, a.budget, a.hardware, a.torch) == (b.data, b.budget, b.hardware, b.torch)


@dataclass(frozen=True)
class Ledger:
    """The results.tsv at `path`; it and its folder come to be with the first row."""

    path: Path

    def append(self, record: Record) -> None:
        """Add a row so that it survives a power cut, or leave the file as it was and raise StateError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                self._append(handle, format_row(record) + "\n")
            finally:
                os.close(handle)
        except OSError as error:
            raise StateError(f"expected to append to {self.path}, found: {because(error)}") from error

    def _append(self, handle: int, line: str) -> None:
        size = os.fstat(handle).st_size
        if size:
            self._check_tail(handle, size)
        else:
            line = "\t".join(COLUMNS) + "\n" + line
        payload = line.encode()
        try:
            if os.write(handle, payload) != len(payload):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):  # half a row must not stay; where it does, repair() finds it
                os.ftruncate(handle, size)
            raise
        if not size:
            sync_folder(self.path.parent)

    def _check_tail(self, handle: int, size: int) -> None:
        header = "\t".join(COLUMNS).encode()
        if os.pread(handle, len(header) + 1, 0).rstrip(b"\n") != header:
            raise StateError(f"expected the columns of this tool in {self.path}, found others; move the file away")
        if os.pread(handle, 1, size - 1) != b"\n":
            raise StateError(f"expected {self.path} to end in a newline, found half a row; resume to repair it")

    def records(self) -> tuple[Record, ...]:
        """All whole rows, oldest first; empty when there is no file yet. A row still being written is left out."""
        if not self.path.exists():
            return ()
        text = _load(self.path)
        whole = text[: text.rfind("\n") + 1]
        return parse(whole, str(self.path)) if whole else ()

    def repair(self) -> str | None:
        """Cut off a last line that has no newline (a crash in mid-write), durably; say what it held."""
        if not self.path.exists():
            return None
        try:
            with self.path.open("r+b") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole == len(content):
                    return None
                file.truncate(whole)
                os.fsync(file.fileno())
        except OSError as error:
            raise StateError(f"expected to repair {self.path}, found: {because(error)}") from error
        return content[whole:].decode("utf-8", "replace")


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable; the file's own fsync does not cover its folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path_or_text: Path | str) -> tuple[Record, ...]:
    """The rows of any ledger of this kind, given as a path or as its text. StateError when it is not one."""
    if isinstance(path_or_text, str) and re.search(r"[\t\r\n]", path_or_text):
        return parse(path_or_text)
    path = Path(path_or_text)
    return parse(_load(path), str(path))


def parse(text: str, source: str = "the ledger") -> tuple[Record, ...]:
    """Rows out of a ledger's text; `source` names it in errors. Commas, quotes and spaces have no meaning here."""
    lines = [line for line in re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")) if _is_row(line)]
    if not lines:
        raise StateError(f"expected a header and rows in {source}, found nothing; give a results.tsv")
    first = _cells(lines[0])
    names = [_normal(cell) for cell in first]
    if _is_header(first, names):
        del lines[0]
    elif len(first) >= 4 and (_number(first[1]) is not None or first[1].lower() in _UNKNOWN):
        names = list(COLUMNS[:5])
    else:
        wanted = " ".join(COLUMNS[:5])
        raise StateError(f"expected columns {wanted} in {source}, found {lines[0][:50]!r}; give a results.tsv")
    rows = [cells for cells in map(_cells, lines) if [_normal(cell) for cell in cells] != names]  # headers may repeat
    places = _places(names, rows)
    return tuple(_record(places, names, row) for row in rows)


def _load(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StateError(f"expected a ledger at {path}, found: {because(error)}") from error
    if b"\0" in content:
        raise StateError(f"expected a ledger of text at {path}, found binary data; give a results.tsv")
    return content.decode("utf-8", "replace")


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not (line.lstrip().startswith("#") and "\t" not in line)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")]


def _normal(cell: str) -> str:
    """`# Val BPB` → `val_bpb`; a header's spelling says nothing about its meaning."""
    name = re.sub(r"[\s\-()]+", "_", cell.lower()).strip("_")
    return name.lstrip("#_") or name


def _is_header(cells: list[str], names: list[str]) -> bool:
    known = {name for column in COLUMNS for name in _spellings(column)} | set(_MEGABYTES)
    value = {*_spellings("val_bpb"), *_spellings("status")}
    return all(_number(cell) is None for cell in cells) and bool(value & set(names)) and len(known & set(names)) > 1


def _spellings(column: str) -> tuple[str, ...]:
    return (column.lower(), *_ALIASES.get(column, ()))


def _places(names: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Column → where it stands. Its own name beats an alias; `result` is a number or a status, as its cells say."""
    free = {name: place for place, name in reversed(list(enumerate(names)))}
    places = {column: free.pop(column.lower()) for column in COLUMNS if column.lower() in free}
    result = free.pop("result", None)
    if result is not None:
        numeric = any(_number(row[result]) is not None for row in rows if result < len(row))
        places.setdefault("val_bpb" if numeric else "status", result)
    for column in COLUMNS:
        spelling = next((name for name in _ALIASES.get(column, ()) if name in free), None)
        if column not in places and spelling:
            places[column] = free.pop(spelling)
    return places


def _record(places: Mapping[str, int], names: list[str], row: list[str]) -> Record:
    row = [*row, *[""] * (len(names) - len(row))]
    if names[-1] in _spellings("description"):  # somebody wrote a tab into the last column's prose
        row[len(names) - 1 :] = [" ".join(row[len(names) - 1 :]).strip()]
    values: dict[str, Any] = {column: _parse_cell(column, row[place]) for column, place in places.items()}
    values = {"commit": None, "val_bpb": None, "memory_gb": None, "status": "", "description": "", **values}
    megabytes = next((_number(row[names.index(name)]) for name in _MEGABYTES if name in names), None)
    if values["memory_gb"] is None and megabytes:
        values["memory_gb"] = megabytes / 1024
    return Record(**values)


def _parse_cell(column: str, cell: str) -> str | int | float | None:
    if column in _FLOATS:
        number = _number(cell)
        return None if number == 0 and column in ("val_bpb", "memory_gb") else number
    if column in _INTEGERS:
        return _integer(cell)
    if column == "status":
        word = cell.lower()
        return _STATUSES.get(word, word if word in (*Status, "baseline") else cell)
    if column not in _PROSE and cell.lower() in _UNKNOWN:
        return None if column in ("commit", "parent") else ""
    return cell


def _number(cell: str) -> float | None:
    match = _NUMBER.fullmatch(cell)
    number = float(match[1]) if match else math.nan
    return number if math.isfinite(number) else None


def _integer(cell: str) -> int | None:
    if re.fullmatch(r"[-+]?\d{1,20}", cell):
        return int(cell)  # not through float: seeds have 64 bits
    number = _number(cell)
    return None if number is None else int(number)


def _format_cell(column: str, value: str | int | float | None) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if column == "val_bpb":
        return f"{value or 0.0:.6f}"
    if column == "memory_gb":
        return f"{value or 0.0:.1f}"
    if column in ("commit", "parent"):
        text = _CONTROL.sub(" ", str(value or "")).strip()
        return (text[:7] if _HEX.fullmatch(text) else text) or (NO_COMMIT if column == "commit" else "")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else _CONTROL.sub(" ", str(value)).strip()
