"""One child of unknown code: the files it finds, how far it is shut in, and the trusted process that it talks to.

A child gets a copy of the source, one socket, and nothing else. What it leaves behind is its log and what the process
at the other end of the socket took down.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.dialogue import converse
from agent.machine import Machine
from agent.text import abridged, raised
from sandbox.cgroup import available
from sandbox.env import child_env
from sandbox.isolation import Isolation
from sandbox.limits import Limits
from sandbox.pool import Slot
from sandbox.process import Ending, Execution, run, tail
from sandbox.workspace import make_workspace, remove_workspace, write_aside

SETTINGS = "trial.json"  # in the child's folder; named by OVERNIGHT_TRIAL
WITHHELD = frozenset({"checkpoint", "curve"})  # settings of the trusted process: paths by which to find other trials
MEMORY_SHARE = 0.9  # of the machine's, that a child may take
ADDRESSES = 8 << 30  # that libraries and idle threads may reserve on top of it
TASKS = 512  # processes that a child may have at one time
SEARCHED_LINES = 400  # of a log's end, in which its last exception is looked for


@dataclass(frozen=True)
class Job:
    """What to run. files: place in the child's folder → text, or a file that is there already. told: its settings,
    of which it gets what concerns it: no path of ours.

    serve: role and SPEC of the trusted process (corpus.serve), None for a child that talks to nobody.
    """

    command: Sequence[str]
    files: Mapping[str, str | Path]
    told: Mapping[str, Any]
    log: Path
    seconds: float
    serve: tuple[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Cell:
    """Where children of a session run. data: folder of the prepared data, None where the task needs none."""

    data: Path | None
    machine: Machine
    isolation: Isolation

    def run(
        self, job: Job, folder: Path, slot: Slot, cancel: threading.Event | None = None
    ) -> tuple[Execution, dict[str, Any]]:
        """How the child ended, and what the trusted process measured: {} if it left nothing."""
        with self._inputs(job, folder) as work:
            if job.serve is None:
                return self._child(job, work, slot, cancel, {}), {}
            role, spec = job.serve
            return converse(
                role,
                dict(spec) | {"data": str(self.data)},
                folder,
                lambda fd: self._child(job, work, slot, cancel, {"fd": fd}),
            )

    @contextmanager
    def _inputs(self, job: Job, folder: Path) -> Iterator[Path]:
        """A folder with the child's files; gone afterwards, with everything that was put there."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_workspace(folder / "work")  # of a run that was cut off
        work = make_workspace(
            folder / "work", {name: text for name, text in job.files.items() if isinstance(text, str)}
        )
        try:
            yield work
        finally:
            remove_workspace(work)

    def _child(
        self, job: Job, work: Path, slot: Slot, cancel: threading.Event | None, link: Mapping[str, int]
    ) -> Execution:
        known = {key: value for key, value in job.told.items() if value is not None and key not in WITHHELD}
        write_aside(work / SETTINGS, json.dumps({**known, **link}))
        shown = {name: work / name if isinstance(file, str) else file for name, file in job.files.items()}
        shown[SETTINGS] = work / SETTINGS
        for place in shown.values():  # the sandbox may be another user's, and a umask may have hidden it
            place.chmod(place.stat().st_mode | 0o444)
        sandbox = self.isolation.around(shown, self._devices(slot))
        if sandbox is None:
            for name, file in job.files.items():
                if isinstance(file, Path):
                    shutil.copy(file, work / name)
        argv = [sys.executable if job.command[0] == "python" else job.command[0], *job.command[1:]]
        env = child_env(work, {"OVERNIGHT_TRIAL": SETTINGS} | dict(slot.env))
        limits, fds = self._limits(job.seconds), list(link.values())
        return run(argv, cwd=work, env=env, limits=limits, log=job.log, pass_fds=fds, cancel=cancel, sandbox=sandbox)

    def _limits(self, seconds: float) -> Limits:
        """Where no control group bounds memory at every moment, address space does for one process.

        CUDA reserves far more of that than memory, macOS even more.
        """
        resident = int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # the host's, no GPU's
        watched = self.machine.device == "cpu" and sys.platform == "linux" and not available()
        addresses = resident + ADDRESSES if watched else None
        return Limits(seconds, memory_bytes=addresses, resident_bytes=resident, tasks=TASKS)

    def _devices(self, slot: Slot) -> tuple[str, ...]:
        """Nodes of the GPUs that this slot, or else this session, may use, and those that all of them share.

        Where they are named otherwise than by number, all nodes are shown.
        """
        if self.machine.device != "cuda" or slot.env.get("CUDA_VISIBLE_DEVICES") == "":
            return ()
        named = slot.env.get("CUDA_VISIBLE_DEVICES") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
        numbered = all(part.strip().isdigit() for part in named.split(","))
        numbers = [part.strip() for part in named.split(",")] if numbered else [str(number) for number in range(16)]
        return (
            *(f"/dev/nvidia{number}" for number in numbers),
            *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"),
        )


def failure_of(execution: Execution, log: Path | None, limit: float) -> str:
    """One line on why a child did not end well, "" if it did. log: what to quote the end of, None for none of it."""
    if execution.ok:
        return ""
    match execution.ending:
        case Ending.TIMED_OUT:
            return f"timed out after {limit:.0f} s"
        case Ending.OUT_OF_MEMORY:
            return f"out of memory (peak {execution.peak_rss_mb:.0f} MB)"
        case Ending.CANCELLED:
            return "cancelled"
        case Ending.SIGNALLED:
            return f"ended by signal {execution.signal}"
    if log is None:
        return f"exit {execution.returncode}"
    return f"exit {execution.returncode}: {raised(tail(log, SEARCHED_LINES))[:200]}"


def end_of(log: Path) -> str:
    """The end of a crashed run's log, for whoever is to repair it."""
    return abridged(tail(log, SEARCHED_LINES))
