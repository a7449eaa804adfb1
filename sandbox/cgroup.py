"""Memory and processes of a command bounded by a control group, where this user may make one (versions 1 and 2).

Where not, rlimits and the runner's watchdog remain: they look each 0.2 s, the kernel looks always.
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

ROOT = "/sys/fs/cgroup"
GONE_SECONDS = 2.0  # that a killed process may take to leave its group


class Group:
    """folders: one for each hierarchy."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = folders

    def enter(self) -> None:
        """The calling process, and all it will start, belong to the group."""
        for folder in self.folders:
            _write(f"{folder}/cgroup.procs", "0")

    def oom_kills(self) -> int | None:
        """How many of its processes the kernel has killed for want of memory; None where it does not say."""
        for folder in self.folders:
            for file in ("memory.events", "memory.oom_control"):  # version 2, version 1
                with suppress(OSError), open(f"{folder}/{file}") as events:  # noqa: PTH123
                    for name, _, number in (line.partition(" ") for line in events):
                        if name == "oom_kill":
                            return int(number)
        return None

    def close(self) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        for folder in self.folders:
            while not _removed(folder) and time.monotonic() < deadline:
                time.sleep(0.01)


def make(name: str, memory: int | None, tasks: int | None) -> Group | None:
    """A group called `name` below the one we are in, or beside it; None where that is refused.

    memory: bytes. tasks: threads of all its processes.
    """
    made: list[str] = []
    try:
        for parent, files in _hierarchies(memory, tasks):
            made.append(f"{parent}/{name}")
            os.mkdir(made[-1])  # noqa: PTH102 - pathlib takes milliseconds to import
            for file, value in files.items():
                _write(f"{made[-1]}/{file}", value)
    except OSError:
        for folder in made:
            _removed(folder)
        return None
    return Group(made) if made else None


def available() -> bool:
    """Whether a command that we start here can have a group."""
    group = make(f"sandbox-{os.urandom(8).hex()}", 1 << 30, 100)  # two threads may ask at once
    if group is not None:
        group.close()
    return group is not None


def _hierarchies(memory: int | None, tasks: int | None) -> list[tuple[str, dict[str, str]]]:
    """The folders of our own group, and what to write below each."""
    with open("/proc/self/cgroup") as table:  # noqa: PTH123
        lines = [line.rstrip("\n").split(":", 2) for line in table]
    wanted = {"memory": memory, "pids": tasks}
    found = []
    for _, controllers, path in lines:
        for name in controllers.split(","):
            value = wanted.get(name)
            file = "memory.limit_in_bytes" if name == "memory" else "pids.max"
            if value is not None:
                found.append((f"{ROOT}/{controllers}{path.rstrip('/')}", {file: str(value)}))
        unified = None if controllers else next(filter(_enabled, _unified(path)), None)
        if unified is not None:
            values = {"memory.max": memory, "memory.swap.max": 0 if memory is not None else None, "pids.max": tasks}
            found.append((unified, {file: str(value) for file, value in values.items() if value is not None}))
    return found


def _unified(path: str) -> list[str]:
    """Folders below which a group may be made: our own, and the one around it.

    A group of version 2 that holds processes, as a terminal's scope does, has no groups with controllers below it; but
    the slice around it holds none, and belongs to the user where systemd runs for one. (No Internal Process Constraint)
    """
    own = f"{ROOT}{path.rstrip('/')}"
    return [own] if own == ROOT else [own, own.rpartition("/")[0]]


def _enabled(folder: str) -> bool:
    """Whether groups below `folder` get both controllers, switching them on if we may (version 2)."""
    try:
        with open(f"{folder}/cgroup.controllers") as file:  # noqa: PTH123
            if not {"memory", "pids"} <= set(file.read().split()):
                return False
        _write(f"{folder}/cgroup.subtree_control", "+memory +pids")
    except OSError:
        return False
    return True


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
