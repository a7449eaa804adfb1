"""What one command may use."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one command and everything it starts.

    wall_seconds: until it is told to end (SIGTERM). grace_seconds: from there until it is killed (SIGKILL).
    memory_bytes: address space of each process (RLIMIT_AS). Leave it None for CUDA, which reserves far more address
    space than memory and would fail at start-up. log_bytes: kept of its output, half from the start, half from the end.
    """

    wall_seconds: float
    grace_seconds: float = 5.0
    memory_bytes: int | None = None
    log_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wall_seconds) and self.wall_seconds > 0):
            raise ValueError(f"expected wall_seconds above 0 and finite, found {self.wall_seconds}")
        if not (math.isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise ValueError(f"expected grace_seconds of at least 0 and finite, found {self.grace_seconds}")
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise ValueError(f"expected memory_bytes above 0 or None, found {self.memory_bytes}")
        if self.log_bytes < 1024:
            raise ValueError(f"expected log_bytes of at least 1024, found {self.log_bytes}")
