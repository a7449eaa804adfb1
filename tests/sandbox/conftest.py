"""Real children for the tests of the sandbox, and how to find those that got away."""

from __future__ import annotations

import os
import sys
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.process import Execution, run

QUICK = Limits(wall_seconds=20, grace_seconds=0.2)
Runs = Callable[..., Execution]

# Leaves a process that no parent, session or process group leads to, and that ignores TERM.
ESCAPE = """
import os, signal, subprocess, sys, time
def escape(word):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execv(sys.executable, [sys.executable, "-S", "-c",
                "import signal, time; signal.signal(15, signal.SIG_IGN); print('away', flush=True); time.sleep(60)",
                word])
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Runs Python code in a child: `runs(code, *arguments, limits=…)`."""

    def start(code: str, *arguments: str, limits: Limits = QUICK, **options: object) -> Execution:
        command = [sys.executable, "-S", "-c", textwrap.dedent(code), *arguments]
        return run(command, cwd=tmp_path, env=child_env(tmp_path), limits=limits, log=tmp_path / "run.log", **options)

    return start


@pytest.fixture
def word() -> str:
    return f"marker-{uuid.uuid4().hex}"


@pytest.fixture
def escape() -> str:
    """Code that defines `escape(word)`: it starts a process that gets away from parent, session and group."""
    return ESCAPE


@pytest.fixture
def alive() -> Callable[[str], list[int]]:
    """Process ids that have a word among their arguments."""
    return _alive


def _alive(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word in (entry / "cmdline").read_text(errors="replace"):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
