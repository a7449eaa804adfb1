"""Real processes, real signals: how a run ends is data, and its output is kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.process import MARK, Ending, Execution, run, tail

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a child subreaper")
QUICK = Limits(wall_seconds=20, grace_seconds=0.2)
Runs = Callable[..., Execution]


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
        run(["sh", "-c", "exit 3"], cwd=tmp_path, env=child_env(tmp_path), limits=Limits(2), log=tmp_path / "run.log")
        for _ in range(40)
    ]
    assert [(execution.ending, execution.returncode) for execution in endings] == [(Ending.EXITED, 3)] * 40


def test_a_command_that_cannot_be_started_exits_127_and_says_why(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    execution = run(["no-such-command-here"], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=log)
    assert (execution.ending, execution.returncode) == (Ending.EXITED, 127)
    assert "no-such-command-here" in log.read_text()


def test_an_empty_command_and_standard_fds_are_refused(tmp_path: Path) -> None:
    for command, fds in (([], ()), (["true"], (1,))):
        with pytest.raises(ValueError, match="expected a command"):
            run(command, cwd=tmp_path, env={}, limits=QUICK, log=tmp_path / "run.log", pass_fds=fds)


def test_a_missing_folder_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        run(["true"], cwd=tmp_path / "missing", env=child_env(tmp_path), limits=QUICK, log=tmp_path / "run.log")
    with pytest.raises(FileNotFoundError):
        run(["true"], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=tmp_path / "missing" / "run.log")
    assert run(["true"], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=tmp_path / "run.log").ok
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
    execution = run(command, cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=tmp_path / "run.log")
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
    execution = run(["echo", "hello"], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=log)
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


def test_the_tail_shows_lines_as_a_terminal_does(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_bytes(b"one\ntwo\nstep 1\rstep 2\rstep 3\r\n\xff four\n\n")
    assert tail(log, 3) == "two\nstep 3\n\ufffd four"
    assert tail(log).startswith("one\n")
    log.write_bytes(b"")
    assert tail(log) == ""
