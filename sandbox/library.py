"""The standard library as bytecode, for runs whose validation text is the standard library.

An interpreter cannot do without its library, and a data set made of that library could be read from it: before the
clock starts, beside the feed, ahead of the score. So the sandbox shows a copy without the text: every module compiled,
docstrings and assertions left out, no source file. Other Pythons' libraries are hidden behind an empty folder.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

LEFT_OUT = frozenset({"test", "tests", "idle_test", "__pycache__"})  # of no use to a program
MOUNTED = ("site-packages", "dist-packages", "lib-dynload")  # hold no text of the library: shown as they are
EMPTY = ".empty"
KNOWN_BY = {"os.py", "abc.py", "dataclasses.py"}  # a folder that holds these is somebody's standard library


def stdlib() -> Path:
    """The running interpreter's library."""
    return Path(sysconfig.get_paths()["stdlib"])


def compiled(cache_folder: Path) -> Path:
    """The copy below `cache_folder`, made when it is not there (2 to 3 s). Raise OSError if it cannot be written."""
    source = stdlib()
    made = hashlib.sha256(f"{sys.version} {source} {(source / 'os.py').stat().st_mtime_ns}".encode()).hexdigest()
    place = cache_folder / f"{sys.implementation.cache_tag}-{made[:12]}"
    if not place.is_dir():
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder) as aside:
            _compile_all(source, Path(aside) / "lib")
            try:
                (Path(aside) / "lib").rename(place)
            except OSError:  # another session was faster
                if not place.is_dir():
                    raise
    return place


def _compile_all(source: Path, into: Path) -> None:
    for path in _files(source):
        target = into / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            _compile(path, target.with_suffix(".pyc"))
        elif path.suffix != ".a":  # an interpreter to link against, of many megabytes
            shutil.copyfile(path, target)
    for name in (*MOUNTED, EMPTY):
        (into / name).mkdir(exist_ok=True)
    for path in (into, *into.rglob("*")):  # the sandbox may be another user's, and a umask may have hidden it
        path.chmod(0o755 if path.is_dir() else 0o644)


def _files(source: Path) -> Iterator[Path]:
    for folder, inside, names in os.walk(source):
        inside[:] = [name for name in inside if name not in LEFT_OUT and name not in MOUNTED]
        yield from (Path(folder) / name for name in names)


def _compile(path: Path, target: Path) -> None:
    """Beside where the source would be, so that it is found without one. What is no Python is left out."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    try:
        py_compile.compile(str(path), str(target), doraise=True, optimize=2, invalidation_mode=mode, quiet=2)
    except py_compile.PyCompileError:
        return


def cover(copy: Path, roots: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(source, place) of what is to lie over the libraries below `roots`, in this order."""
    own = {str(stdlib()), os.path.realpath(stdlib())}
    for place in _libraries(tuple(roots)):
        if os.path.realpath(place) not in own:
            yield str(copy / EMPTY), place
    for place in sorted(own):
        yield str(copy), place
        for name in MOUNTED:
            if Path(place, name).is_dir():
                yield f"{place}/{name}", f"{place}/{name}"


@cache
def _libraries(roots: tuple[str, ...]) -> tuple[str, ...]:
    """Folders below `roots` that hold a standard library: other releases, and those that tools bring along."""
    found = []
    for root in roots:
        for folder, inside, names in os.walk(root):
            inside[:] = [name for name in inside if name not in LEFT_OUT and name not in MOUNTED]
            if KNOWN_BY.issubset(names):
                found.append(folder)
    return tuple(sorted(set(found)))
