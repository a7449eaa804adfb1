"""How running out of memory is told from other ends, and how much was used."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.cgroup import available
from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.process import Ending, Execution, run, tail
from sandbox.runner import pause

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a child subreaper")
QUICK = Limits(wall_seconds=20, grace_seconds=0.2)
Runs = Callable[..., Execution]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


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
    execution = run(["sh", "-c", script], cwd=tmp_path, env=child_env(tmp_path), limits=QUICK, log=tmp_path / "run.log")
    wait_until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()
    assert (execution.ending, execution.signal) == (Ending.OUT_OF_MEMORY, signal.SIGKILL)


@linux_only
@pytest.mark.skipif(not available(), reason="this user may not make a control group")
def test_a_kill_by_somebody_else_is_no_want_of_memory_because_the_kernel_took_another(
    runs: Runs, tmp_path: Path
) -> None:
    """Two runs at once: one is taken by the kernel for its memory, the other one kills itself a moment later."""
    small = Limits(wall_seconds=20, grace_seconds=0.2, resident_bytes=64 << 20)
    taken: list[Execution] = []

    def hungry() -> None:
        command = [sys.executable, "-S", "-c", "bytearray(b'x') * (1 << 30)"]
        taken.append(run(command, cwd=tmp_path, env=child_env(tmp_path), limits=small, log=tmp_path / "hungry.log"))

    other = threading.Thread(target=hungry)
    other.start()
    large = replace(small, resident_bytes=4 << 30)
    killed = runs("import os, time; time.sleep(2); os.kill(os.getpid(), 9)", limits=large)
    other.join()
    assert (taken[0].ending, taken[0].signal) == (Ending.OUT_OF_MEMORY, signal.SIGKILL)
    assert (killed.ending, killed.signal) == (Ending.SIGNALLED, signal.SIGKILL)


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


@pytest.mark.parametrize(("cost", "seconds"), [(0.0, 0.2), (0.004, 0.2), (0.01, 0.5), (0.02, 1.0), (0.3, 1.0)])
def test_no_sample_is_so_dear_that_the_next_one_comes_too_late(cost: float, seconds: float) -> None:
    assert pause(cost) == pytest.approx(seconds)
