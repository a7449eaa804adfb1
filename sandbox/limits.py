"""What one command may use."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one command and everything it starts.

    wall_seconds: until it is told to end (SIGTERM). grace_seconds: from there until it is killed (SIGKILL).
    memory_bytes: address space of each process (RLIMIT_AS). Leave it None for CUDA, which reserves far more address
    space than memory and would fail at start-up. resident_bytes: resident memory of all of them together, and what lies
    in their sandbox's files, looked at each 0.2 s. tasks: processes of it at one time, of 8 threads each on average.
    log_bytes: kept of its output, half from the start, half from the end. None: no bound.
    """

    wall_seconds: float
    grace_seconds: float = 5.0
    memory_bytes: int | None = None
    resident_bytes: int | None = None
    tasks: int | None = None
    log_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wall_seconds) and self.wall_seconds > 0):
            raise ValueError(f"expected wall_seconds above 0 and finite, found {self.wall_seconds}")
        if not (math.isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise ValueError(f"expected grace_seconds of at least 0 and finite, found {self.grace_seconds}")
        for name in ("memory_bytes", "resident_bytes", "tasks"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"expected {name} above 0 or None, found {value}")
        if self.log_bytes < 1024:
            raise ValueError(f"expected log_bytes of at least 1024, found {self.log_bytes}")
