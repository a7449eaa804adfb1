from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandbox.limits import Limits
from sandbox.tree import Process, descendants, processes, processes_by_ps


def row(pid: int, parent: int, group: int = 0, zombie: bool = False) -> Process:
    return Process(pid, parent, group, zombie, 0)


def test_descendants_are_found_at_any_depth_and_only_they() -> None:
    table = [row(1, 0), row(5, 1), row(9, 5), row(7, 9), row(8, 7, zombie=True), row(10, 8), row(6, 1), row(11, 6)]
    assert sorted(found.pid for found in descendants(table, 5)) == [7, 9, 10]


def test_members_of_the_group_count_too_where_orphans_are_lost() -> None:
    table = [row(5, 1, 5), row(9, 5, 9), row(7, 1, 9), row(8, 1, 4)]
    assert sorted(found.pid for found in descendants(table, 5, group=9)) == [7, 9]


@pytest.mark.parametrize("table", [processes, processes_by_ps])
def test_the_table_knows_us_and_a_child(table: object) -> None:
    assert callable(table)
    if shutil.which("ps") is None or (table is processes and sys.platform != "linux"):
        pytest.skip("no such table here")
    before = {entry.pid for entry in descendants(table(), os.getpid())}  # such as multiprocessing's resource tracker
    child = subprocess.Popen(["sleep", "20"], start_new_session=True)
    found = {entry.pid: entry for entry in table()}
    child.kill()
    assert found[child.pid].parent == os.getpid()
    assert found[child.pid].group == child.pid
    assert not found[child.pid].zombie
    assert 5 << 20 < found[os.getpid()].rss < 64 << 30
    assert {entry.pid for entry in descendants(found.values(), os.getpid())} - before == {child.pid}
    assert child.wait() == -9


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_zombie_is_dead_but_a_leader_that_left_its_threads_behind_is_not() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(20,)).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2): this thread only
    )
    leader = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    dead = subprocess.Popen(["true"])
    assert leader.stdout is not None
    leader.stdout.read(2)
    pause = threading.Event()
    for _ in range(100):
        states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] for pid in (leader.pid, dead.pid)}
        if set(states.values()) == {"Z"}:
            break
        pause.wait(0.05)
    living = [entry.pid for entry in descendants(processes(), os.getpid())]
    leader.kill()
    leader.stdout.close()
    assert set(states.values()) == {"Z"}
    assert leader.pid in living
    assert dead.pid not in living
    assert (leader.wait(), dead.wait()) == (-9, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall_seconds", 0),
        ("wall_seconds", float("inf")),
        ("wall_seconds", float("nan")),
        ("grace_seconds", -1),
        ("memory_bytes", 0),
        ("log_bytes", 10),
    ],
)
def test_limits_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"expected {name}"):
        Limits(**{"wall_seconds": 1, name: value})
