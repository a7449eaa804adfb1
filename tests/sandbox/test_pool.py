from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from sandbox.env import child_env
from sandbox.limits import Limits
from sandbox.pool import LocalPool, Pool, Slot
from sandbox.process import Ending, Execution, run

TWO = (Slot(0, "cpu0", {"OMP_NUM_THREADS": "1"}), Slot(1, "cpu1"))


def results(pool: Pool[int], count: int) -> dict[int, int]:
    finished = [pool.wait(10) for _ in range(count)]
    return {job_id: future.result() for job_id, future in finished}


def test_jobs_run_in_order_on_one_slot() -> None:
    ran: list[int] = []

    def job(number: int) -> int:
        ran.append(number)
        return number * number

    with LocalPool[int](TWO[:1]) as pool:
        ids = [pool.submit(lambda slot, stop, number=number: job(number)) for number in range(5)]
        assert results(pool, 5) == {job_id: number * number for number, job_id in enumerate(ids)}
    assert ran == list(range(5))


def test_two_slots_run_two_jobs_at_a_time_each_in_its_own() -> None:
    meeting = threading.Barrier(2, timeout=10)
    busy: set[str] = set()

    def job(slot: Slot, stop: threading.Event) -> int:
        meeting.wait()  # breaks unless two are here at once
        assert slot.name not in busy
        busy.add(slot.name)
        meeting.wait()
        busy.remove(slot.name)
        return slot.index

    with LocalPool[int](TWO) as pool:
        assert pool.slots == 2
        for _ in range(6):
            pool.submit(job)
        assert sorted(results(pool, 6).values()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_job_raises_comes_out(error: BaseException) -> None:
    def job(slot: Slot, stop: threading.Event) -> int:
        raise error

    with LocalPool[int](TWO[:1]) as pool:
        failed = pool.submit(job)
        job_id, future = pool.wait(10)
        assert (job_id, future.exception()) == (failed, error)
        pool.submit(lambda slot, stop: 1)  # the slot is free again
        assert list(results(pool, 1).values()) == [1]


def test_waiting_has_an_end() -> None:
    with LocalPool[int](TWO) as pool:
        with pytest.raises(LookupError, match="found none"):
            pool.wait()
        pool.submit(lambda slot, stop: int(stop.wait(20)))
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="1 in flight"):
            pool.wait(0.1)
        assert time.monotonic() - began < 5
    assert results(pool, 1)  # leaving the block asked it to end


def test_a_cancelled_run_ends_as_cancelled_and_its_neighbour_goes_on(tmp_path: Path) -> None:
    def sleep(seconds: float) -> int:
        def job(slot: Slot, stop: threading.Event) -> Execution:
            command = [sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"]
            log = tmp_path / f"{slot.name}.log"
            return run(
                command, cwd=tmp_path, env=child_env(tmp_path, slot.env), limits=Limits(30), log=log, cancel=stop
            )

        return pool.submit(job)

    with LocalPool[Execution](TWO) as pool:
        long, short = sleep(60), sleep(0.5)
        time.sleep(0.2)
        pool.cancel(long)
        endings = dict(pool.wait(20) for _ in range(2))
    assert endings[long].result().ending is Ending.CANCELLED
    assert endings[short].result().ok


def test_a_job_cancelled_while_queued_never_runs_and_still_comes_out() -> None:
    go, ran = threading.Event(), threading.Event()
    with LocalPool[bool](TWO[:1]) as pool:
        first = pool.submit(lambda slot, stop: go.wait(10))
        queued = pool.submit(lambda slot, stop: ran.set() is None)
        pool.cancel(queued)
        job_id, future = pool.wait(10)
        assert job_id == queued
        with pytest.raises(CancelledError):
            future.result()
        go.set()
        assert pool.wait(10)[0] == first
        pool.cancel(first)  # finished: left alone
        pool.cancel(999)
    assert not ran.is_set()


def test_close_ends_everything_and_nothing_is_lost() -> None:
    pool = LocalPool[bool](TWO)
    ids = {pool.submit(lambda slot, stop: stop.wait(30)) for _ in range(5)}
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 5
    assert {pool.wait(1)[0] for _ in ids} == ids


def test_a_pool_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        LocalPool[int]([])
