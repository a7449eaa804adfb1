"""The process table, and who descends from whom. Imported by the runner too, so it is quick to load."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

LINUX = sys.platform == "linux"
_CHUNK = 1 << 16


class Process:
    """One row of the process table. rss: resident bytes. zombie: dead, waiting for its parent to look.

    threads: 1 where the table does not say.
    """

    def __init__(self, pid: int, parent: int, group: int, zombie: bool, rss: int, threads: int = 1) -> None:
        self.pid, self.parent, self.group, self.zombie, self.rss = pid, parent, group, zombie, rss
        self.threads = threads


def processes() -> list[Process]:
    if not LINUX:
        return processes_by_ps()
    rows = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):  # gone since the listing
                rows.append(_parse_stat(int(entry.name), read_file(f"/proc/{entry.name}/stat")))
    return rows


def read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)


def _parse_stat(pid: int, line: bytes) -> Process:
    fields = line[line.rindex(b")") + 2 :].split()  # the name before it may hold anything; proc(5), from field 3 on
    # A leader whose main thread has ended while others run also shows as a zombie, but lives: count threads (field 20)
    threads = int(fields[17])
    zombie = fields[0] in (b"Z", b"X") and threads <= 1
    return Process(pid, int(fields[1]), int(fields[2]), zombie, int(fields[21]) * resource.getpagesize(), threads)


def processes_by_ps() -> list[Process]:
    """The same table where there is no /proc (macOS)."""
    columns = [argument for name in ("pid", "ppid", "pgid", "rss", "stat") for argument in ("-o", f"{name}=")]
    with subprocess.Popen(["ps", "-A", *columns], stdout=subprocess.PIPE) as ps:
        lines = ps.communicate()[0].split(b"\n")
    rows = [line.split() for line in lines if line.strip()]
    table = [Process(int(p), int(pp), int(g), stat[:1] == b"Z", int(rss) * 1024) for p, pp, g, rss, stat in rows]
    return [row for row in table if row.pid != ps.pid]


def descendants(rows: Iterable[Process], root: int, group: int | None = None) -> list[Process]:
    """Living processes below `root`; with `group`, the members of that process group too."""
    children: dict[int, list[Process]] = {}
    found: dict[int, Process] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
        if row.group == group and row.pid != root:
            found[row.pid] = row
    todo = [root]
    while todo:
        for row in children.get(todo.pop(), ()):
            found[row.pid] = row
            todo.append(row.pid)
    return [row for row in found.values() if not row.zombie]


def kill(rows: list[Process]) -> None:
    """Each process, and its group in one call: a process that forks faster than we can list does not outrun that."""
    for row in rows:
        send(os.kill, row.pid, signal.SIGKILL)
        if row.group != os.getpgrp():
            send(os.killpg, row.group, signal.SIGKILL)


def send(call: Callable[[int, int], None], target: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        call(target, number)
