"""What the trusted processes and a run say to each other: JSON, and arrays as raw little-endian bytes behind it."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from corpus.packing import Tokens

LARGEST = 1e18  # FLOPs of a token; no model that trains is near it
MAX_REQUEST = 1 << 16  # bytes of one request; an array that follows has a bound of its own


def receive(link: Connection, limit: int) -> bytes | None:
    """The next message, None when the other side has hung up. ValueError for one of more than `limit` bytes."""
    try:
        return link.recv_bytes(limit)
    except (EOFError, ConnectionResetError):
        return None
    except OSError:  # what multiprocessing raises for too long a message, after which the line is unusable
        raise ValueError(f"expected a message of at most {limit} bytes, found a longer one") from None


def count(value: Any) -> float:
    """A number that a run says of itself: finite and above zero. Raise ValueError for anything else."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if not 0.0 < number < LARGEST:
        raise ValueError(f"expected a number above 0 and below {LARGEST:g}, found another")
    return number


def send(link: Connection, facts: dict[str, Any], tokens: Tokens | None) -> None:
    """Facts, and behind them a batch where there is one: uint16, its shape among the facts."""
    link.send_bytes(json.dumps(facts | {"shape": None if tokens is None else tokens.shape}).encode())
    if tokens is not None:
        link.send_bytes(tokens.astype("<u2", copy=False).tobytes())
