"""The small process between us and a command: it starts the command, watches it, and ends everything that came of it.

`sandbox.process` starts it as an isolated interpreter (-I -S) that calls `main`. Standard library only, and little of
it, to be up in milliseconds.

    stdin   one line of JSON (what to run), then silence; its end means "stop": cancelled, or whoever asked has died
    stdout  {"pid": n} once the command is started, then one line that says how it ended
    stderr  the log file, which the command's output is copied to

On Linux it is a child subreaper (prctl(2)): a descendant whose parent has died becomes our child, so walking /proc from
here finds every descendant, whatever sessions or groups it made. Elsewhere the command's process group has to do.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from sandbox.cgroup import make as make_group
from sandbox.filled import Filled
from sandbox.stage import become_nobody_else, stage
from sandbox.tree import LINUX, Process, descendants, kill, processes, read_file, send

SAMPLE_SECONDS = (0.2, 1.0)  # between two looks at what a command has taken, at least and at most
KILL_SECONDS = 10.0  # how long SIGKILL may take: a process inside a driver call dies only when that returns
CHUNK = 1 << 18
NOT_STARTED = 127  # as a shell says it
THREADS = 8  # for each process that a command may have, on average
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h


def prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


class Log:
    """Copies output to a file descriptor: the first half of `limit` bytes at once, the last half at the end."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.room, self.keep = fd, limit // 2, limit - limit // 2
        self.rest = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        head, data = data[: self.room], data[self.room :]
        self.room -= len(head)
        self._write(head)
        self.rest += data
        if len(self.rest) > 2 * self.keep:
            self._trim()

    def _trim(self) -> None:
        excess = max(0, len(self.rest) - self.keep)
        self.dropped += excess
        del self.rest[:excess]

    def close(self, note: str = "") -> None:
        self._trim()
        if self.dropped:
            self._write(f"\n[sandbox: {self.dropped} bytes of output dropped here]\n".encode())
        self._write(bytes(self.rest) + note.encode())

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError:  # a full disk must not end the run; what is missing is said if there is room again
            self.dropped += len(view)


def pause(cost: float) -> float:
    """Seconds until the next sample after one that cost that many seconds of a core: a long process table is dear.

    2 % of a core are enough, unless a command could fill the machine's memory in between.
    """
    shortest, longest = SAMPLE_SECONDS
    return min(max(shortest, 50 * cost), longest)


class Watch:
    """A started command and all that comes of it.

    status: what wait4 said of the main process, None while it lives. asked: someone wants it to stop. broken: the
    ending that comes of a limit it has broken, "" while it keeps them.
    """

    def __init__(self, log: Log, spec: Spec) -> None:
        self.log = log
        self.resident, self.tasks, self.filled = spec.resident, spec.tasks, Filled(spec.places)
        self.broken = ""
        self.status: int | None = None
        self.asked = self.childless = False
        self.peak_rss = self.largest = 0
        self.wake = self._wake_on_signals()
        self.output, write_end = os.pipe()
        self.started = self.ended = self.next_sample = time.monotonic()
        self.child = spec.start(write_end)  # held for good: a Popen that goes away may reap the child and its status
        self.pid = self.child.pid
        os.close(write_end)
        self.poll = select.poll()
        os.set_blocking(self.output, False)
        for fd in (0, self.wake, self.output):
            self.poll.register(fd, select.POLLIN)

    def _wake_on_signals(self) -> int:
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "asked", True))
        return wake

    def living(self) -> list[Process]:
        return descendants(processes(), os.getpid(), None if LINUX else self.pid)

    def step(self, seconds: float) -> None:
        """Wait for at most so long, then deal with what happened."""
        for fd, _ in self.poll.poll(max(0.0, seconds) * 1000):
            data = self._read(fd)
            if data == b"":
                self.poll.unregister(fd)
                self.asked = self.asked or fd == 0
            elif data and fd == self.output:
                self.log.add(data)
        self._reap()
        if time.monotonic() >= self.next_sample:
            self._sample()

    def _read(self, fd: int) -> bytes | None:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # whoever asked has died without reading our last line
            return b""

    def _reap(self) -> None:
        try:
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = ended
                self.largest = max(self.largest, usage.ru_maxrss * (1024 if LINUX else 1))
                if pid == self.pid:
                    self.status, self.ended = status, time.monotonic()
        except ChildProcessError:
            self.childless = True

    def _sample(self) -> None:
        began = time.thread_time()
        living = self.living()
        taken = sum(row.rss for row in living) + self.filled.look(row.pid for row in living)
        self.peak_rss = max(self.peak_rss, taken)
        if self.resident is not None and taken > self.resident:
            self.broken = "out_of_memory"
        elif self.tasks is not None and _too_many(living, self.tasks):
            self.broken = "signalled"
        self.next_sample = time.monotonic() + pause(time.thread_time() - began)

    def until_over(self, wall: float) -> str:
        deadline = self.started + wall
        while self.status is None:
            if self.asked:
                return "cancelled"
            if self.broken:
                return self.broken
            if time.monotonic() >= deadline:
                return "timed_out"
            self.step(min(deadline, self.next_sample) - time.monotonic())
        return "ended"

    def end_all(self, grace: float) -> list[int]:
        """TERM, grace, KILL for everything alive; returns what even KILL did not end."""
        for row in self.living():
            send(os.kill, row.pid, signal.SIGTERM)
            send(os.kill, row.pid, signal.SIGCONT)  # a stopped process would not hear it
        self._until_alone(grace, 0.02, lambda: None)
        self._until_alone(KILL_SECONDS, 0.002, lambda: kill(self.living()))
        return [row.pid for row in self.living()]

    def _until_alone(self, seconds: float, pause: float, act: Callable[[], None]) -> None:
        deadline = time.monotonic() + seconds
        while not self._alone() and (left := deadline - time.monotonic()) > 0:
            act()
            self.step(min(pause, left))
            pause = min(1.2 * pause, 0.1)

    def _alone(self) -> bool:
        """Nothing that came of the command lives. A subreaper without children has no descendants at all: exact."""
        self._reap()
        return self.childless and (LINUX or not self.living())

    def drain(self) -> None:
        for _ in range(16):  # a pipe holds 1 MiB at most, and nobody is left to fill it
            self.log.add(self._read(self.output) or b"")


def _too_many(living: list[Process], tasks: int) -> bool:
    return len(living) > tasks or sum(row.threads for row in living) > THREADS * tasks


class Spec:
    """What to run: the first line of stdin."""

    def __init__(self, line: bytes) -> None:
        read = json.loads(line)
        self.command: list[str] = read["command"]
        self.env: dict[str, str] = read["env"]
        self.wall: float = read["wall_seconds"]
        self.grace: float = read["grace_seconds"]
        self.memory: int | None = read["memory_bytes"]
        self.resident: int | None = read["resident_bytes"]
        self.tasks: int | None = read["tasks"]
        self.places: list[str] = read["places"]
        self.stage: list[str] = read["stage"]
        self.log_bytes: int = read["log_bytes"]
        self.pass_fds: list[int] = read["pass_fds"]
        self.parent: int = read["parent"]
        self.log = os.dup(2)  # 2 itself is the command's own by the time that something can go wrong
        bounded = self.resident is not None or self.tasks is not None
        threads = self.tasks and THREADS * self.tasks
        self.group = make_group(f"sandbox-{os.getpid()}", self.resident, threads) if bounded else None

    def start(self, output: int) -> subprocess.Popen[bytes]:
        """Start the command in a session of its own, its output going to `output`."""
        child = subprocess.Popen(
            self.command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=self.pass_fds,
            start_new_session=True,
            preexec_fn=self._before_exec,
        )
        for fd in self.pass_fds:  # so that the other end of such a pipe sees its end when the command closes it
            os.close(fd)
        return child

    def _before_exec(self) -> None:
        try:
            self._enter()
        except OSError as error:  # subprocess would pass on that there was an exception, not which
            os.write(self.log, f"[sandbox: {error.filename or ''}: {error.strerror or error}]\n".encode())
            raise

    def _enter(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self.memory, self.memory))
        if LINUX and int(read_file("/proc/self/oom_score_adj")) < 500:
            # when the machine runs out of memory the kernel should take the trial, not the session that started it
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(fd, b"500")
            os.close(fd)
        if self.group is not None:
            self.group.enter()
        if self.stage:
            stage(self.stage)
            become_nobody_else(self.tasks and THREADS * self.tasks)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the last, for a change of user takes it back


def supervise(spec: Spec) -> dict[str, object]:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    log = Log(2, spec.log_bytes)
    try:
        watch = Watch(log, spec)
    except (OSError, subprocess.SubprocessError) as error:
        if spec.group is not None:
            spec.group.close()
        log.close(f"[sandbox: cannot start {spec.command[0]!r}: {error}]\n")
        return {"reason": "ended", "returncode": NOT_STARTED, "signal": None, "wall_seconds": 0.0, "peak_rss": 0}
    prctl(PR_SET_DUMPABLE, 0)  # the command may not look into us or take our file descriptors (ptrace, pidfd_getfd)
    tell({"pid": watch.pid})
    watch.asked = watch.asked or os.getppid() != spec.parent  # it died before we asked to be told
    reason = watch.until_over(spec.wall)
    survivors = watch.end_all(spec.grace)
    kills = None
    if spec.group is not None:
        kills = spec.group.oom_kills()
        spec.group.close()
    watch.drain()
    log.close(f"\n[sandbox: not even SIGKILL ended {survivors}]\n" if survivors else "")
    return {"reason": reason, "oom_kills": kills, **_how_it_ended(watch)}


def _how_it_ended(watch: Watch) -> dict[str, object]:
    code = None if watch.status is None else os.waitstatus_to_exitcode(watch.status)
    return {
        "returncode": code if code is not None and code >= 0 else None,
        "signal": -code if code is not None and code < 0 else None,
        "wall_seconds": (time.monotonic() if code is None else watch.ended) - watch.started,
        "peak_rss": max(watch.peak_rss, watch.largest),
    }


def tell(report: Mapping[str, object]) -> None:
    with suppress(ConnectionError):  # whoever asked has died; the work here stays the same
        os.write(1, json.dumps(report).encode() + b"\n")


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, CHUNK)
        if not chunk:
            sys.exit("sandbox: expected one line of JSON on stdin, found its end; start runs through sandbox.process")
        line += chunk
    tell(supervise(Spec(line)))
