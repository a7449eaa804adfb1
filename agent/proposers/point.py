"""What searches over constants share: values to edits, a source's identity, and what a row says of a point. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from agent import patch, preflight
from agent.constants import Value, rewrite
from agent.values import Edit, Record, Status


def edits_of(target: str, source: str, device: str, values: Mapping[str, Value]) -> tuple[Edit, ...]:
    """Edits of the file `target` that give its constants these values; none for those that have theirs already."""
    return tuple(Edit(target, search, replace) for search, replace in rewrite(source, device, values))


def applied(target: str, source: str, edits: Sequence[Edit]) -> str:
    """The source after them."""
    return patch.apply({target: source}, edits, [target])[target] if edits else source


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


@lru_cache(maxsize=8)
def skeleton(target: str, source: str, device: str, names: tuple[str, ...]) -> str:
    """A hash of the code without the values of these constants: what tells another code from the same one turned."""
    return preflight.digest(applied(target, source, edits_of(target, source, device, dict.fromkeys(names))))


def score(record: Record) -> float | None:
    """What was measured; of a duplicate, what it had before. None for a failure."""
    if record.status in (Status.KEEP, Status.DISCARD) and record.val_bpb is not None:
        return record.val_bpb
    earlier = re.search(r"tried before.* val_bpb (\d+\.\d+)", record.reason)
    return float(earlier[1]) if earlier else None


def heading(record: Record) -> float | None:
    """Of a run that was stopped early: where it was heading, as agent.pruning has it; None for others."""
    found = re.search(r"^stopped at .* heading for val_bpb (\d+\.\d+)", record.reason)
    return float(found[1]) if found else None
