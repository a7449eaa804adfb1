"""Run one command in a session of its own and say how it ended; nothing it started outlives the call.

The work is done by a small process between us and the command (`sandbox.runner`). If that process dies, or we do, the
other one cleans up.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from sandbox.bwrap import Put, Sandbox
from sandbox.limits import Limits
from sandbox.runner import KILL_SECONDS
from sandbox.tree import kill, processes, read_file

MARK = "SANDBOX_RUN"  # in the environment of everything a run starts, to be found by if its runner is lost
SIGNALLED = 128  # bwrap, like a shell, says so much and the number of the signal for what a signal ended
NO_REPORT = 125  # the returncode of a run whose runner failed by itself, as container tools say it

_POLL_SECONDS = 0.1  # how late a cancel may be seen
_RUNNER_SLACK = 5.0  # beyond all limits, before a silent runner counts as lost
_START = "import sys; sys.path.append(sys.argv[1]); from sandbox.runner import main; main()"
_ROOT = Path(__file__).resolve().parent.parent

# How running out of memory looks when the kernel did not have to kill: Python, torch on CPU, CUDA and MPS, C++, libc.
_OUT_OF_MEMORY = re.compile(
    r"^(?:\w+\.)*(?:MemoryError|OutOfMemoryError)\b|(?:CUDA|HIP|MPS backend) out of memory|std::bad_alloc"
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory|CUBLAS_STATUS_ALLOC_FAILED|Cannot allocate memory",
    re.MULTILINE,
)


class Ending(StrEnum):
    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Execution:
    """How one command ended.

    returncode: its exit status, None when a signal ended it or nobody knows. signal: the signal that ended it.
    wall_seconds: start to end of the main process. started_at: seconds since the epoch.
    peak_rss_mb: MiB; the larger of the whole tree's resident memory and what lies in its sandbox's files, sampled each
    0.2 s (pages shared by two processes count twice), and the exact peak of its largest process. 0.0 when unknown.
    """

    ending: Ending
    returncode: int | None
    signal: int | None
    wall_seconds: float
    peak_rss_mb: float
    log_path: Path
    started_at: float

    @property
    def ok(self) -> bool:
        return self.ending is Ending.EXITED and self.returncode == 0


@dataclass(frozen=True)
class _Report:
    """What the runner said last. reason: "ended", "timed_out" or "cancelled"; peak_rss: bytes.
    oom_kills: of its control group; None without one.
    """

    reason: str
    returncode: int | None
    signal: int | None
    wall_seconds: float
    peak_rss: int
    oom_kills: int | None = None


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limits: Limits,
    log: Path,
    pass_fds: Sequence[int] = (),
    cancel: threading.Event | None = None,
    sandbox: Sandbox | None = None,
) -> Execution:
    """Run `command` in `cwd` with exactly `env` (and MARK), its output in `log`; return when it and all it began ended.

    pass_fds: open in the command under the same numbers; the caller closes its own copies. Standard input is empty.
    cancel: set it from another thread to end the run. sandbox: run it inside; it starts in the sandbox's own folder
    then, and what it wants to leave behind has to go through `pass_fds` or `log`. A command that cannot be started
    exits 127, as in a shell.
    """
    if not command or any(fd < 3 for fd in pass_fds):
        raise ValueError(f"expected a command and pass_fds above 2, found {list(command)} and {list(pass_fds)}")
    cancel = cancel or threading.Event()
    mark, kills = uuid.uuid4().hex, _oom_kills()
    started_at, began = time.time(), time.monotonic()
    with Put(command, {**env, MARK: mark}, sandbox) as put:
        fds = [*pass_fds, *put.fds]
        runner, line = _start_runner(cwd, env, log, fds)
        said = _converse(runner, line, _spec(put, limits, fds), limits, cancel)
    report = _last_word(said)
    if report is None:
        _sweep(mark, said)
        report = _without_report(runner.returncode, time.monotonic() - began, limits, cancel)
    if sandbox is not None and report.returncode is not None and report.returncode > SIGNALLED:
        report = replace(report, returncode=None, signal=report.returncode - SIGNALLED)
    kills = _oom_kills() - kills if report.oom_kills is None else report.oom_kills
    ending = _classify(report, tail(log), kills > 0)
    peak = report.peak_rss / 2**20
    return Execution(ending, report.returncode, report.signal, report.wall_seconds, peak, log, started_at)


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log as a terminal shows them: of a line redrawn with carriage returns, the last state."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 18)))
        text = file.read(1 << 18).decode(errors="replace")
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.rstrip("\n").split("\n")]
    return "\n".join(shown[-lines:])


def _start_runner(
    cwd: Path, env: Mapping[str, str], log: Path, pass_fds: Sequence[int]
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The runner and our end of the line to it: one socket is its stdin and stdout. No other process can open that."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        ours, theirs = map(stack.enter_context, socket.socketpair())
        runner = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, str(_ROOT)],
            cwd=cwd,
            env=env,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        return runner, ours.dup()  # the one end that outlives this block, once nothing can fail any more


def _spec(put: Put, limits: Limits, pass_fds: Sequence[int]) -> bytes:
    spec = {"command": put.command, "env": put.env, "places": put.places, "stage": put.stage}
    more = {"pass_fds": list(pass_fds), "parent": os.getpid()}
    return json.dumps({**spec, **more, **asdict(limits)}).encode() + b"\n"


def _converse(
    runner: subprocess.Popen[bytes], line: socket.socket, spec: bytes, limits: Limits, cancel: threading.Event
) -> bytes:
    """Tell the runner what to do and return all it says. On every way out of here, Ctrl-C too, it has stopped."""
    patience = limits.grace_seconds + KILL_SECONDS + _RUNNER_SLACK
    said = b""
    try:
        with suppress(ConnectionError):  # it died at once; what it left in the log and its exit status say why
            line.sendall(spec)
        said = _listen(line, limits.wall_seconds + patience, cancel)
    finally:
        with suppress(OSError):  # not connected any more
            line.shutdown(socket.SHUT_WR)
        said += _listen(line, patience, threading.Event())
        line.close()
        runner.kill()  # does nothing if it has ended by itself
        runner.wait()
    return said


def _listen(line: socket.socket, seconds: float, cancel: threading.Event) -> bytes:
    said, deadline = b"", time.monotonic() + seconds
    line.settimeout(_POLL_SECONDS)
    while not cancel.is_set() and time.monotonic() < deadline:
        try:
            chunk = line.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionResetError:  # it died before it had read everything
            break
        if not chunk:
            break
        said += chunk
    return said


def _last_word(said: bytes) -> _Report | None:
    """The second line of what a runner says; None if it ended before that line did."""
    lines = said.split(b"\n")
    reports = [json.loads(line) for line in lines[:-1]]
    return next((_Report(**report) for report in reports if "reason" in report), None)


def _without_report(code: int, seconds: float, limits: Limits, cancel: threading.Event) -> _Report:
    """What can be said when the runner was killed, or did not answer and was killed by us."""
    if cancel.is_set() or seconds >= limits.wall_seconds:
        return _Report("cancelled" if cancel.is_set() else "timed_out", None, None, seconds, 0)
    returncode, number = (None, -code) if code < 0 else (NO_REPORT, None)
    return _Report("ended", returncode, number, seconds, 0)


def _classify(report: _Report, last_lines: str, kernel_killed: bool) -> Ending:
    """kernel_killed: the kernel has killed one of it for want of memory, or somebody where nobody knows whom."""
    if report.reason != "ended":
        return Ending(report.reason)
    if report.returncode == 0:
        return Ending.EXITED
    if (report.signal == signal.SIGKILL and kernel_killed) or _OUT_OF_MEMORY.search(last_lines):
        return Ending.OUT_OF_MEMORY
    return Ending.EXITED if report.signal is None else Ending.SIGNALLED


def _oom_kills() -> int:
    """How often the kernel of this machine has killed a process for want of memory; 0 where it does not say."""
    with suppress(FileNotFoundError):
        found = re.search(rb"^oom_kill (\d+)$", read_file("/proc/vmstat"), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _sweep(mark: str, said: bytes) -> None:
    """Kill what a lost runner left behind: the command's group, and all that carry the mark in their environment."""
    group = json.loads(said)["pid"] if said.endswith(b"}\n") else None
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        left = [row for row in processes() if not row.zombie and (row.group == group or _carries(row.pid, mark))]
        if not left:
            return
        kill(left)
        time.sleep(0.005)


def _carries(pid: int, mark: str) -> bool:
    with suppress(OSError):  # gone, or somebody else's
        return f"{MARK}={mark}".encode() in read_file(f"/proc/{pid}/environ")
    return False
