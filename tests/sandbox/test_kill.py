"""Nobody survives: timeouts, daemons, a lost runner, our own death. Survivors show by a word in their arguments."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import process
from sandbox.env import child_env
from sandbox.isolation import Level, detect
from sandbox.limits import Limits
from sandbox.process import NO_REPORT, Ending, Execution, run, tail

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a child subreaper")
bwrap = pytest.mark.skipif(detect().level is not Level.BWRAP, reason=f"needs bubblewrap: {detect().why}")
QUICK = Limits(wall_seconds=20, grace_seconds=0.2)
Runs = Callable[..., Execution]
Alive = Callable[[str], list[int]]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@linux_only
def test_timeout_leaves_no_survivor_of_a_child_that_double_forks_and_ignores_term(
    runs: Runs, word: str, escape: str, alive: Alive
) -> None:
    code = escape + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nescape(sys.argv[1])\ntime.sleep(60)"
    execution = runs(code, word, limits=Limits(wall_seconds=1.0, grace_seconds=0.2))
    assert execution.ending is Ending.TIMED_OUT
    assert execution.signal == signal.SIGKILL
    assert "away" in execution.log_path.read_text()  # it did get away before it was ended
    assert alive(word) == []


@linux_only
def test_a_daemon_left_after_a_normal_exit_is_ended(runs: Runs, word: str, escape: str, alive: Alive) -> None:
    code = escape + "\nescape(sys.argv[1])\ntime.sleep(0.3)\nprint(len(sys.argv))"
    execution = runs(code, word)
    assert execution.ok
    assert "away" in execution.log_path.read_text()
    assert execution.wall_seconds < 5
    assert alive(word) == []


@linux_only
@pytest.mark.parametrize("setsid", ["", "os.setsid(); "])
def test_a_chain_of_forks_does_not_outrun_the_kill(runs: Runs, word: str, setsid: str, alive: Alive) -> None:
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


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_without_a_subreaper_the_process_group_is_ended(
    runs: Runs, word: str, monkeypatch: pytest.MonkeyPatch, alive: Alive
) -> None:
    elsewhere = "import sys; sys.path.append(sys.argv[1]); import sandbox.tree; sandbox.tree.LINUX = False; "
    monkeypatch.setattr(process, "_START", elsewhere + "from sandbox.runner import main; main()")
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.fork()
            print("away", flush=True)
            time.sleep(60)
        time.sleep(0.5)
    """
    execution = runs(code, word)
    assert execution.ok
    assert execution.log_path.read_text().count("away") == 2  # written by two at once, in any order
    assert alive(word) == []


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_runner_is_data_and_leaves_nothing(
    runs: Runs, word: str, number: signal.Signals, escape: str, alive: Alive
) -> None:
    code = escape + f"\nescape(sys.argv[1])\ntime.sleep(0.3)\nos.kill(os.getppid(), {int(number)})\ntime.sleep(60)"
    began = time.monotonic()
    execution = runs(code, word)
    assert (execution.ending, execution.returncode, execution.signal) == (Ending.SIGNALLED, None, number)
    assert time.monotonic() - began < 5
    assert alive(word) == []


@linux_only
def test_a_stopped_runner_is_a_timeout(
    runs: Runs, word: str, monkeypatch: pytest.MonkeyPatch, escape: str, alive: Alive
) -> None:
    monkeypatch.setattr(process, "KILL_SECONDS", 0.5)
    monkeypatch.setattr(process, "_RUNNER_SLACK", 0.2)
    code = escape + "\nescape(sys.argv[1])\nos.kill(os.getppid(), 19)\ntime.sleep(60)"
    execution = runs(code, word, limits=Limits(wall_seconds=0.6, grace_seconds=0.1))
    assert execution.ending is Ending.TIMED_OUT
    assert alive(word) == []


def test_a_runner_that_fails_by_itself_exits_125(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ROOT", tmp_path)  # nothing to import there
    execution = run(["true"], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=tmp_path / "run.log")
    assert (execution.ending, execution.returncode) == (Ending.EXITED, NO_REPORT)
    assert "ModuleNotFoundError" in tail(execution.log_path)


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("sandbox", ["None", pytest.param("detect().around({})", marks=bwrap)])
def test_when_we_are_killed_everything_ends(
    tmp_path: Path, word: str, number: signal.Signals, sandbox: str, escape: str, alive: Alive
) -> None:
    code = escape + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nescape(sys.argv[1])\ntime.sleep(60)"
    parent = f"""
        import sys
        from pathlib import Path
        from sandbox.isolation import detect
        from sandbox.limits import Limits
        from sandbox.process import run
        run([sys.executable, "-S", "-c", {code!r}, {word!r}], cwd=Path("."), env={{}},
            limits=Limits(60, 0.2), log=Path({str(tmp_path / "run.log")!r}), sandbox={sandbox})
    """
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], cwd=Path(__file__).parents[2])
    assert wait_until(lambda: (tmp_path / "run.log").is_file() and "away" in (tmp_path / "run.log").read_text())
    assert len(alive(word)) >= (3 if sandbox == "None" else 5)  # our double, the command, the one away; bwrap's two
    started.send_signal(number)
    started.wait()
    assert wait_until(lambda: alive(word) == [])
