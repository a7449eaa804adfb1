"""Real processes, real signals. Survivors are found by a word in their arguments that no other process has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import process
from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.process import MARK, NO_REPORT, Ending, Execution, run, tail

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a child subreaper")
QUICK = Limits(wall_seconds=20, grace_seconds=0.2)

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

Runs = Callable[..., Execution]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Runs Python code in a child: `runs(code, *arguments, limits=…)`."""

    def start(code: str, *arguments: str, limits: Limits = QUICK, **options: object) -> Execution:
        command = [sys.executable, "-S", "-c", textwrap.dedent(code), *arguments]
        return run(command, cwd=tmp_path, env=child_env(), limits=limits, log=tmp_path / "run.log", **options)

    return start


@pytest.fixture
def word() -> str:
    return f"marker-{uuid.uuid4().hex}"


def alive(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if word in (entry / "cmdline").read_text(errors="replace"):
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_success_is_ok(runs: Runs, tmp_path: Path) -> None:
    before = time.time()
    execution = runs("print('hello'); import sys; print('world', file=sys.stderr)")
    assert execution.ok
    assert (execution.ending, execution.returncode, execution.signal) == (Ending.EXITED, 0, None)
    assert execution.log_path == tmp_path / "run.log"
    assert execution.log_path.read_text() == "hello\nworld\n"
    assert 0 < execution.wall_seconds < 10
    assert before <= execution.started_at <= time.time()


@pytest.mark.parametrize("code", [1, 3, 125, 255])
def test_exit_status_is_data(runs: Runs, code: int) -> None:
    execution = runs(f"raise SystemExit({code})")
    assert (execution.ending, execution.returncode, execution.ok) == (Ending.EXITED, code, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_death_by_signal_is_data(runs: Runs, number: signal.Signals) -> None:
    execution = runs(f"import os; os.kill(os.getpid(), {int(number)})")
    assert (execution.ending, execution.returncode, execution.signal) == (Ending.SIGNALLED, None, number)


def test_the_exit_status_of_a_command_that_ends_at_once_is_not_lost(tmp_path: Path) -> None:
    endings = [
        run(["sh", "-c", "exit 3"], cwd=tmp_path, env=child_env(), limits=Limits(2), log=tmp_path / "run.log")
        for _ in range(40)
    ]
    assert [(execution.ending, execution.returncode) for execution in endings] == [(Ending.EXITED, 3)] * 40


def test_a_command_that_cannot_be_started_exits_127_and_says_why(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    execution = run(["no-such-command-here"], cwd=tmp_path, env=child_env(), limits=QUICK, log=log)
    assert (execution.ending, execution.returncode) == (Ending.EXITED, 127)
    assert "no-such-command-here" in log.read_text()


def test_an_empty_command_and_standard_fds_are_refused(tmp_path: Path) -> None:
    for command, fds in (([], ()), (["true"], (1,))):
        with pytest.raises(ValueError, match="expected a command"):
            run(command, cwd=tmp_path, env={}, limits=QUICK, log=tmp_path / "run.log", pass_fds=fds)


def test_a_missing_folder_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        run(["true"], cwd=tmp_path / "missing", env=child_env(), limits=QUICK, log=tmp_path / "run.log")
    with pytest.raises(FileNotFoundError):
        run(["true"], cwd=tmp_path, env=child_env(), limits=QUICK, log=tmp_path / "missing" / "run.log")
    assert run(["true"], cwd=tmp_path, env=child_env(), limits=QUICK, log=tmp_path / "run.log").ok
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_the_child_has_exactly_the_environment_folder_and_empty_input_it_was_given(tmp_path: Path) -> None:
    code = "import os, sys; print(sorted(os.environ), os.getcwd(), repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    env = {"PATH": os.environ["PATH"], "ONE": "1", "LC_CTYPE": "C"}
    execution = run([sys.executable, "-c", code], cwd=tmp_path, env=env, limits=QUICK, log=tmp_path / "run.log")
    names = sorted([*env, MARK])
    assert execution.ok
    assert tail(execution.log_path) == f"{names} {tmp_path} '' True"


def test_signals_a_python_parent_ignores_are_back_to_normal(runs: Runs, tmp_path: Path) -> None:
    command = ["sh", "-c", "kill -PIPE $$; echo still here"]
    execution = run(command, cwd=tmp_path, env=child_env(), limits=QUICK, log=tmp_path / "run.log")
    assert execution.signal == signal.SIGPIPE


def test_timeout_gives_term_then_grace(runs: Runs) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), time.sleep(0.2), sys.exit(7)))
        time.sleep(60)
    """
    execution = runs(code, limits=Limits(wall_seconds=0.5, grace_seconds=10))
    assert (execution.ending, execution.returncode) == (Ending.TIMED_OUT, 7)
    assert execution.log_path.read_text() == "saving\n"
    assert 0.7 <= execution.wall_seconds < 5


def test_timeout_ends_a_stopped_child(runs: Runs) -> None:
    execution = runs("import os; os.kill(os.getpid(), 19)", limits=Limits(wall_seconds=0.3, grace_seconds=0.2))
    assert execution.ending is Ending.TIMED_OUT


@linux_only
def test_timeout_leaves_no_survivor_of_a_child_that_double_forks_and_ignores_term(runs: Runs, word: str) -> None:
    code = ESCAPE + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nescape(sys.argv[1])\ntime.sleep(60)"
    execution = runs(code, word, limits=Limits(wall_seconds=1.0, grace_seconds=0.2))
    assert execution.ending is Ending.TIMED_OUT
    assert execution.signal == signal.SIGKILL
    assert "away" in execution.log_path.read_text()  # it did get away before it was ended
    assert alive(word) == []


@linux_only
def test_a_daemon_left_after_a_normal_exit_is_ended(runs: Runs, word: str) -> None:
    code = ESCAPE + "\nescape(sys.argv[1])\ntime.sleep(0.3)\nprint(len(sys.argv))"
    execution = runs(code, word)
    assert execution.ok
    assert "away" in execution.log_path.read_text()
    assert execution.wall_seconds < 5
    assert alive(word) == []


@linux_only
@pytest.mark.parametrize("setsid", ["", "os.setsid(); "])
def test_a_chain_of_forks_does_not_outrun_the_kill(runs: Runs, word: str, setsid: str) -> None:
    code = f"""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            while True:
                if os.fork(): os._exit(0)
                {setsid}time.sleep(0.001)
        time.sleep(60)
    """
    execution = runs(code, word, limits=Limits(wall_seconds=0.4, grace_seconds=0.1))
    assert execution.ending is Ending.TIMED_OUT
    assert alive(word) == []
    assert "SIGKILL" not in tail(execution.log_path)


def test_a_flood_of_output_keeps_head_and_tail(runs: Runs) -> None:
    code = "import sys; sys.stdout.writelines(f'line {n}\\n' for n in range(400_000)); print('the end')"
    limits = Limits(wall_seconds=30, log_bytes=64 << 10)
    execution = runs(code, limits=limits)
    text = execution.log_path.read_text()
    head, note, rest = text.partition("\n[sandbox: ")
    written = sum(len(f"line {n}\n") for n in range(400_000)) + len("the end\n")
    dropped = int(rest.split()[0])
    assert execution.ok
    assert head.startswith("line 0\nline 1\n")
    assert text.endswith("line 399999\nthe end\n")
    assert note
    assert dropped == written - limits.log_bytes
    assert len(text) < limits.log_bytes + 100


def test_output_below_the_cap_is_kept_as_it_is(runs: Runs) -> None:
    execution = runs("import os; os.write(1, bytes(range(256)) * 4)", limits=Limits(wall_seconds=20, log_bytes=1024))
    assert execution.log_path.read_bytes() == bytes(range(256)) * 4


@linux_only
def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    log = tmp_path / "full.log"
    log.symlink_to("/dev/full")
    execution = run(["echo", "hello"], cwd=tmp_path, env=child_env(), limits=QUICK, log=log)
    assert execution.ok


def test_cancel_from_another_thread_ends_the_run(runs: Runs) -> None:
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    began = time.monotonic()
    execution = runs("import time; time.sleep(60)", cancel=cancel)
    assert execution.ending is Ending.CANCELLED
    assert execution.signal == signal.SIGTERM
    assert time.monotonic() - began < 5


def test_cancelled_before_it_began(runs: Runs) -> None:
    cancel = threading.Event()
    cancel.set()
    assert runs("import time; time.sleep(60)", cancel=cancel).ending is Ending.CANCELLED


def test_fds_are_passed_and_closed_behind_the_child(runs: Runs) -> None:
    to_child, ours = os.pipe()
    theirs, from_child = os.pipe()
    code = """
        import os, sys
        question = os.read(int(sys.argv[1]), 100)
        os.write(int(sys.argv[2]), question.upper())
    """
    os.write(ours, b"tokens")
    execution = runs(code, str(to_child), str(from_child), pass_fds=(to_child, from_child))
    os.close(from_child)
    assert execution.ok
    assert os.read(theirs, 100) == b"TOKENS"
    assert os.read(theirs, 100) == b""  # nobody else holds the writing end
    for fd in (to_child, ours, theirs):
        os.close(fd)


def test_the_reader_sees_the_end_while_the_child_still_runs(runs: Runs) -> None:
    theirs, from_child = os.pipe()
    seen: list[float] = []

    def read() -> None:
        while os.read(theirs, 100):
            pass
        seen.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    threading.Timer(0.3, os.close, (from_child,)).start()  # ours, once the child has its own
    execution = runs(
        "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(1)", str(from_child), pass_fds=(from_child,)
    )
    ended = time.monotonic()
    reader.join()
    os.close(theirs)
    assert execution.ok
    assert ended - seen[0] > 0.3


def test_a_memory_limit_ends_as_out_of_memory(runs: Runs) -> None:
    limits = Limits(wall_seconds=20, memory_bytes=300 << 20)
    execution = runs("bytearray(1 << 30)", limits=limits)
    assert (execution.ending, execution.returncode) == (Ending.OUT_OF_MEMORY, 1)
    assert runs("bytearray(1 << 20)", limits=limits).ok


@pytest.mark.parametrize(
    "last_words",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_words_of_an_allocator_count_only_with_a_failure(runs: Runs, last_words: str) -> None:
    assert runs("import sys; print(sys.argv[1]); sys.exit(1)", last_words).ending is Ending.OUT_OF_MEMORY
    assert runs("import sys; print(sys.argv[1]); sys.exit(0)", last_words).ending is Ending.EXITED


def test_talk_about_memory_is_no_evidence(runs: Runs) -> None:
    assert runs("import sys; print('no MemoryError so far'); sys.exit(1)").ending is Ending.EXITED


def memory_cgroup() -> Path | None:
    """A new memory group with a small limit, where this machine lets us make one (cgroup v1 or v2)."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"sandbox-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(64 << 20))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


@linux_only
def test_a_kill_by_the_kernel_for_memory_is_out_of_memory(tmp_path: Path) -> None:
    group = memory_cgroup()
    if group is None:
        pytest.skip("this user may not make a memory cgroup")
    script = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -S -c 'bytearray(b\"x\") * (1 << 30)'"
    execution = run(["sh", "-c", script], cwd=tmp_path, env=child_env(), limits=QUICK, log=tmp_path / "run.log")
    wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()
    assert (execution.ending, execution.signal) == (Ending.OUT_OF_MEMORY, signal.SIGKILL)


def test_peak_memory_counts_the_whole_tree(runs: Runs) -> None:
    code = """
        import subprocess, sys
        hold = "x = bytearray(b'x') * (80 << 20); import time; time.sleep(1.2)"
        children = [subprocess.Popen([sys.executable, "-S", "-c", hold]) for _ in range(2)]
        sys.exit(max(child.wait() for child in children))
    """
    execution = runs(code)
    assert execution.ok
    assert 160 <= execution.peak_rss_mb < 260


def test_a_short_peak_of_one_process_is_exact(runs: Runs) -> None:
    execution = runs("bytearray(b'x') * (100 << 20)")
    assert 100 <= execution.peak_rss_mb < 150


@linux_only
def test_children_offer_themselves_to_the_oom_killer_and_dump_no_core(runs: Runs) -> None:
    code = """
        import resource
        print(open("/proc/self/oom_score_adj").read().strip(), resource.getrlimit(resource.RLIMIT_CORE))
    """
    execution = runs(code)
    score, limit = tail(execution.log_path).split(maxsplit=1)
    assert int(score) >= 500
    assert limit == "(0, 0)"


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_runner_is_data_and_leaves_nothing(runs: Runs, word: str, number: signal.Signals) -> None:
    code = ESCAPE + f"\nescape(sys.argv[1])\ntime.sleep(0.3)\nos.kill(os.getppid(), {int(number)})\ntime.sleep(60)"
    began = time.monotonic()
    execution = runs(code, word)
    assert (execution.ending, execution.returncode, execution.signal) == (Ending.SIGNALLED, None, number)
    assert time.monotonic() - began < 5
    assert alive(word) == []


@linux_only
def test_a_stopped_runner_is_a_timeout(runs: Runs, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KILL_SECONDS", 0.5)
    monkeypatch.setattr(process, "_RUNNER_SLACK", 0.2)
    code = ESCAPE + "\nescape(sys.argv[1])\nos.kill(os.getppid(), 19)\ntime.sleep(60)"
    execution = runs(code, word, limits=Limits(wall_seconds=0.6, grace_seconds=0.1))
    assert execution.ending is Ending.TIMED_OUT
    assert alive(word) == []


def test_a_runner_that_fails_by_itself_exits_125(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ROOT", tmp_path)  # nothing to import there
    execution = run(["true"], cwd=tmp_path, env=child_env(), limits=QUICK, log=tmp_path / "run.log")
    assert (execution.ending, execution.returncode) == (Ending.EXITED, NO_REPORT)
    assert "ModuleNotFoundError" in tail(execution.log_path)


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_we_are_killed_everything_ends(tmp_path: Path, word: str, number: signal.Signals) -> None:
    code = ESCAPE + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nescape(sys.argv[1])\ntime.sleep(60)"
    parent = f"""
        import sys
        from pathlib import Path
        from sandbox.limits import Limits
        from sandbox.process import run
        run([sys.executable, "-S", "-c", {code!r}, {word!r}], cwd=Path("."), env={{}},
            limits=Limits(60, 0.2), log=Path({str(tmp_path / "run.log")!r}))
    """
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], cwd=Path(__file__).parents[2])
    assert wait_until(lambda: (tmp_path / "run.log").is_file() and "away" in (tmp_path / "run.log").read_text())
    assert len(alive(word)) >= 2
    started.send_signal(number)
    started.wait()
    assert wait_until(lambda: alive(word) == [])


def test_the_tail_shows_lines_as_a_terminal_does(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_bytes(b"one\ntwo\nstep 1\rstep 2\rstep 3\r\n\xff four\n\n")
    assert tail(log, 3) == "two\nstep 3\n\ufffd four"
    assert tail(log).startswith("one\n")
    log.write_bytes(b"")
    assert tail(log) == ""
