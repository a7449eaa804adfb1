"""Files to documents, streaming: text and Markdown, JSON lines, parquet."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.documents import MAX_CHUNK, text_chunks
from corpus.errors import DataError

LONGEST_LINE = 64_000  # characters: a longer line is cut, so that text without line ends still streams
ROWS_AT_A_TIME = 1024


def read_text(path: Path) -> Iterator[str]:
    """A small file is one document; a larger one is cut at blank lines."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = iter(lambda: file.readline(LONGEST_LINE), "")
            if path.stat().st_size <= 2 * MAX_CHUNK:
                yield "".join(lines)
            else:
                yield from text_chunks(lines)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error.reason}; convert or remove the file") from error


def read_jsonl(path: Path) -> Iterator[str]:
    """One document a line: the string in field `text`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _text_field(line, f"{path}:{number}")


def _text_field(line: bytes, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f'{where}: expected a JSON object with "text", found {error!r}; mend that line') from error
    if not isinstance(text, str):
        raise DataError(f'{where}: expected a string in "text", found {type(text).__name__}; mend that line')
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can spell lone surrogates, UTF-8 cannot


def read_parquet(path: Path, rows: range | None = None) -> Iterator[str]:
    """Column `text` of the rows `rows` (default: all), a batch of them in memory at a time; null is an empty text."""
    last = parquet_rows(path) if rows is None else rows.stop
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=["text"]):
                if row >= last:
                    return
                first = rows.start if rows else 0
                yield from (text or "" for text in batch.column(0).to_pylist()[max(0, first - row) : last - row])
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def parquet_rows(path: Path) -> int:
    """Rows of a parquet file, read from its footer, which comes last: only a whole file has one. Checks the column."""
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path}: expected a column `text`, found {names}; rename the column with the text")
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> DataError:
    found = " ".join(str(error).split())[:120]
    return DataError(f"{path}: expected a whole parquet file, found {found}; delete it and get it again")


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
