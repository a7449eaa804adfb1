"""What trials came to, in this session and in others on the same data and hardware: for searches that go on from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.errors import StateError
from agent.folder import CANDIDATE, SessionFolder, sessions
from agent.ledger import Ledger
from agent.values import Record

SAME = ("data_id", "hardware")


@dataclass(frozen=True)
class Experience:
    """A trial. source: of the target file. ratio: of its score to its session's baseline, None where it left none.

    record: its row. Other sessions may have another budget; ratios compare roughly, scores do not.
    """

    tag: str
    source: str
    ratio: float | None
    record: Record


def experience(root: Path, facts: Mapping[str, Any], target: str) -> Iterator[Experience]:
    """Of sessions with the same data id, hardware and task as the one with these `facts`, itself included; those used
    last come last."""
    for tag in reversed(sessions(root)):
        folder = SessionFolder(root, tag)
        try:
            found = folder.session() or {}
            rows = Ledger(folder.ledger).records() if _alike(found, facts) else ()
        except StateError:  # somebody else's, and no reason to stop this one
            continue
        base = next((row.val_bpb for row in rows if row.trial == 0), None)
        for row in rows:
            source = _source(folder.trial(row.trial or 0).path / CANDIDATE, target)
            if base and source is not None and row.budget == found.get("budget"):
                yield Experience(tag, source, row.val_bpb / base if row.val_bpb else None, row)


def _alike(found: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    task = [json.loads(json.dumps(one.get("task"))) for one in (found, facts)]
    return task[0] == task[1] and all(found.get(name) == facts.get(name) for name in SAME)


def _source(file: Path, target: str) -> str | None:
    """It does not change any more, so that it is read once."""
    return _read(file, target) if file.is_file() else None


@lru_cache(maxsize=4096)
def _read(file: Path, target: str) -> str | None:
    try:
        source = json.loads(file.read_text())["sources"].get(target)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return source if isinstance(source, str) else None
