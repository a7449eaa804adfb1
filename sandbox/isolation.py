"""How far a command is shut in: the levels, and which of them this machine can do."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from sandbox.bwrap import Box, Sandbox, find
from sandbox.limits import Limits
from sandbox.process import run, tail

# Root shows the sandbox what only root can reach, such as an interpreter below a 0700 home (sandbox.stage).
AS_ROOT = (
    "root needs the right to mount (CAP_SYS_ADMIN) for it; without it, run as a user of your own, "
    "with the interpreter and its packages where that user may read them, not below /root"
)
ADVICE = "install it with `pip install overnight[sandbox]` or from the system's packages"


class Level(StrEnum):
    """bwrap: namespaces, a root of its own, no network, no capability. process: a session and a folder of its own."""

    BWRAP = "bwrap"
    PROCESS = "process"


@dataclass(frozen=True)
class Isolation:
    """A level that works here. why: what is missing for more, "" when nothing is. library: see `Box`."""

    level: Level
    program: Path | None = None
    why: str = ""
    library: Path | None = None

    def around(self, files: Mapping[str, Path], devices: tuple[str, ...] = ()) -> Sandbox | None:
        """The sandbox of one command, None where the level has none. files: place inside → file outside."""
        return Sandbox(self.program, Box(files, devices, self.library)) if self.program is not None else None


@cache
def detect() -> Isolation:
    """The best level that a harmless command survives here."""
    if not sys.platform.startswith("linux"):
        return Isolation(Level.PROCESS, why=f"bubblewrap needs Linux, found {sys.platform}")
    program = find()
    if program is None:
        return Isolation(Level.PROCESS, why=f"bubblewrap is not installed; {ADVICE}")
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        command = [sys.executable, "-I", "-c", "import json, socket; socket.socketpair()"]
        sandbox = Sandbox(program, Box())
        done = run(command, cwd=Path(name), env={}, limits=Limits(20.0), log=log, sandbox=sandbox)
        said = tail(log, 1) or f"{done.ending} {done.returncode}"
    if done.ok:
        return Isolation(Level.BWRAP, program)
    advice = f"; {AS_ROOT}" if os.geteuid() == 0 else ""
    return Isolation(Level.PROCESS, why=f"{program} fails here: {said}{advice}")
