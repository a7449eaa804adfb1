"""Starts the programs that try to get out of the sandbox, with something to get at, and says what stopped each one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.isolation import Isolation, Level
from sandbox.limits import Limits
from sandbox.process import Execution, run
from tests.attacks import programs
from tests.attacks.programs import PROGRAMS, Program

SECRET = "sk-this-must-not-get-out"
RESIDENT, TASKS, LOG_BYTES = 1200 << 20, 200, 1 << 20  # more than each of the sandbox's file systems holds


@dataclass
class Outside:
    """What there is to get at, and what became of it."""

    folder: Path
    names: dict[str, object] = field(default_factory=dict)
    udp: socket.socket | None = None


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """A home with keys, a repository, listeners of every kind, and a process whose environment holds a key.

    Where only the mount namespace hides them: anybody may read them, and no memory lies over the place inside.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, _outside(Path(name)) as made:
        Path(name).chmod(0o755)
        yield made


@contextlib.contextmanager
def _outside(folder: Path) -> Iterator[Outside]:
    home, git = folder / "home", folder / "repository" / ".git"
    for path, text in (
        (home / ".ssh" / "id_ed25519", "KEY"),
        (home / ".config" / "token", "KEY"),
        (git / "config", ""),
        (git / "hooks" / "sample", ""),
        (git / "objects" / "ab" / ("d" * 38), ""),
        (folder / "trials" / "1" / "metrics.json", "{}"),
        (folder / "results.tsv", "ledger\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.3)
        abstract, path = f"attack-{os.getpid()}", folder / "socket"
        for address in (f"\0{abstract}", str(path)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        victim = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)", "attack-victim"], env={"OPENAI_API_KEY": SECRET}
        )
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        names = {
            "home": home,
            "git": git,
            "ledger": folder / "results.tsv",
            "trial": folder / "trials" / "1",
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "abstract": abstract,
            "path": path,
            "pid": victim.pid,
            "secret": SECRET,
        }
        yield Outside(folder, names, udp)


def untried(name: str, level: Level) -> str:
    """Why a program is not started on this machine, "" where it is."""
    program = PROGRAMS[name]
    return program.needs() or (program.bare() if level is Level.PROCESS else "")


def expected(name: str, level: Level) -> str:
    """What `attempt` is to say: at level process there is no wall, only limits."""
    return "" if level is Level.PROCESS and not PROGRAMS[name].limited else f"sandbox ({level})"


def attempt(name: str, isolation: Isolation, world: Outside, folder: Path) -> str:
    """ "" if the attack came through, else what stopped it; WRONG and more if it failed by itself."""
    mark = f"attack-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    shutil.copy(programs.__file__, folder / "attack.py")
    done = run(
        [sys.executable, "attack.py", name, json.dumps({**world.names, "mark": mark}, default=str)],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        limits=Limits(60.0, grace_seconds=0.2, resident_bytes=RESIDENT, tasks=TASKS, log_bytes=LOG_BYTES),
        log=folder / "log",
        sandbox=isolation.around({"attack.py": folder / "attack.py"}),
    )
    if _seen_outside(name, done, world, mark):
        return ""
    return verdict(PROGRAMS[name], done.ending, done.log_path.read_text(errors="replace"), isolation.level)


def verdict(program: Program, ending: str, log: str, level: Level) -> str:
    """By what the program said: it must have come as far as the wall, and the wall must have answered."""
    lines = [line for line in log.splitlines() if line]
    last = lines[-1] if lines else ""
    word = last.removeprefix("REFUSED ") if ending == "exited" else ending
    if "REACHED" in lines and word == "SURVIVED":
        return ""
    if "REACHED" in lines and word in program.stopped:
        return f"sandbox ({level})"
    return f"WRONG: it failed by itself, {ending}, {last[:100]!r}"


def _seen_outside(name: str, done: Execution, world: Outside, mark: str) -> bool:
    """Whether something came of it that only we can see."""
    match name:
        case "UDP to this machine":
            assert world.udp is not None
            with contextlib.suppress(TimeoutError):
                return bool(world.udp.recv(1))
        case "daemon for the next trial" | "fork bomb":
            time.sleep(0.2)
            return mark in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        case "a file for the next trial":
            left = [Path(folder) / mark for folder in ("/tmp", "/dev/shm", "/var/tmp")]
            return bool([path.unlink() for path in left if path.exists()])
        case "memory bomb" | "memory bomb of files" | "many small files":
            return done.peak_rss_mb > 3 * (RESIDENT >> 20)
        case "log flood":
            return done.log_path.stat().st_size > 2 * LOG_BYTES
    return False
