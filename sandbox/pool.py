"""Places where jobs run at the same time. The loop knows only the Pool protocol, also when there is one place."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """One place to run. name: as the ledger shows it. env: what binds a child to it (CUDA_VISIBLE_DEVICES, threads)."""

    index: int
    name: str
    env: Mapping[str, str] = field(default_factory=dict)


class Pool(Protocol[T]):
    """Runs jobs of one result type. A job gets its slot and an event that is set when it should end early."""

    @property
    def slots(self) -> int:
        """How many jobs run at the same time."""
        ...

    def submit(self, job: Callable[[Slot, threading.Event], T]) -> int:
        """Start the job, or queue it until a slot is free; returns its id."""
        ...

    def wait(self, timeout: float | None = None) -> tuple[int, Future[T]]:
        """The next finished job and its future: `result()` returns what the job did, or raises what it raised.

        Each job comes out once. A job cancelled before it began raises CancelledError. Raises TimeoutError when none
        finishes within `timeout` seconds, LookupError when none is in flight.
        """
        ...

    def cancel(self, job_id: int) -> None:
        """Ask one job to end. It still comes out of `wait`. A finished or unknown job is left alone."""
        ...

    def close(self) -> None:
        """Ask all jobs to end and return when they have."""
        ...


class LocalPool(Generic[T]):
    """One thread for each slot of this machine. Use it in a `with` block: leaving that ends all jobs."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        if not slots:
            raise ValueError("expected at least one slot, found none")
        self.slots = len(slots)
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(len(slots), thread_name_prefix="slot")
        self._ids = itertools.count(1)
        self._jobs: dict[int, tuple[Future[T], threading.Event]] = {}
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def submit(self, job: Callable[[Slot, threading.Event], T]) -> int:
        job_id, stop = next(self._ids), threading.Event()
        future = self._threads.submit(self._in_slot, job, stop)
        self._jobs[job_id] = future, stop
        future.add_done_callback(lambda _: self._done.put(job_id))
        return job_id

    def _in_slot(self, job: Callable[[Slot, threading.Event], T], stop: threading.Event) -> T:
        slot = self._free.get()  # never waits: there are as many threads as slots
        try:
            return job(slot, stop)
        finally:
            self._free.put(slot)

    def wait(self, timeout: float | None = None) -> tuple[int, Future[T]]:
        if not self._jobs:
            raise LookupError("expected a job in flight, found none; submit one before waiting")
        try:
            job_id = self._done.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(
                f"expected a job to finish within {timeout} s, found {len(self._jobs)} in flight"
            ) from None
        return job_id, self._jobs.pop(job_id)[0]

    def cancel(self, job_id: int) -> None:
        if job_id in self._jobs:
            future, stop = self._jobs[job_id]
            stop.set()
            future.cancel()  # only if it is still queued

    def close(self) -> None:
        for job_id in self._jobs:
            self.cancel(job_id)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
