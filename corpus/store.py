"""Files that grow while a data set is made, and that survive an interruption: appended, synced, then accounted for.

A growing `.npy` keeps a header of fixed length in front, so that the finished array needs no copying.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from corpus.errors import DataError

HEADER = 128  # bytes: numpy pads a version 1.0 header to a multiple of 64, leaving room for a longer shape


def write_atomically(path: Path, content: str | bytes) -> None:
    """Another process sees the old file or the new one, never half a file; synced before it is visible."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file, or None where there is no file or no JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time is inside; the lock goes with the process, however that ends."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is at work in {path.parent}; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class GrowingArray:
    """A one-dimensional `.npy` of unknown length, opened at its first `count` elements; what lies behind is dropped."""

    def __init__(self, path: Path, dtype: str, count: int) -> None:
        self.count = count
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        size = HEADER + count * self._dtype.itemsize
        if path.stat().st_size < size and count:
            self._file.close()
            raise DataError(
                f"{path}: expected {size} bytes, found {path.stat().st_size}; delete {path.parent} and start over"
            )
        self._file.truncate(size)
        self._write_header()
        self._file.seek(size)

    def append(self, values: npt.NDArray[Any]) -> None:
        """Adds the values, (n,), at the end."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.count += len(values)

    def sync(self) -> None:
        """Everything appended so far is on the disk when this returns, and the header tells the truth."""
        self._write_header()
        self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; what was not synced may be lost."""
        self._file.close()

    def _write_header(self) -> None:
        buffer = BytesIO()
        fields = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(buffer, fields)
        assert len(buffer.getvalue()) == HEADER, "numpy changed the padding of its headers"
        self._file.seek(0)
        self._file.write(buffer.getvalue())


@contextmanager
def closing_all(arrays: list[GrowingArray]) -> Iterator[None]:
    """Closes the arrays in the end, whatever happened."""
    try:
        yield
    finally:
        for array in arrays:
            array.close()
