"""Which way a candidate turns which constants, where that is all that it does. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from agent import patch, preflight
from agent.constants import Constant, Value, find, render, rewrite
from agent.errors import PatchError
from agent.values import Edit

Turn: TypeAlias = frozenset[tuple[str, str]]  # of (constant, where to: "up", "down" or the new value)


def turned(before: Mapping[str, str], after: Mapping[str, str], device: str) -> Turn | None:
    """The turn from one set of target files to another; None where more than live constants has changed."""
    turn: set[tuple[str, str]] = set()
    for path, source in after.items():
        found = _turned(path, before.get(path, ""), source, device) if source != before.get(path) else frozenset()
        if found is None:
            return None
        turn |= found
    return frozenset(turn) or None


def told(turn: Turn) -> str:
    """For a person or a model."""
    return " and ".join(f"{name} {way}" for name, way in sorted(turn))


def _turned(path: str, before: str, after: str, device: str) -> Turn | None:
    try:
        return _compared(path, before, after, device)
    except (SyntaxError, ValueError, IndexError, PatchError):  # sources that Python reads otherwise than lines are read
        return None


def _compared(path: str, before: str, after: str, device: str) -> Turn | None:
    old, new = _values(before, device), _values(after, device)
    if old.keys() != new.keys():
        return None
    changed = {name: old[name].value for name in old if render(old[name].value) != render(new[name].value)}
    back = tuple(Edit(path, search, replace) for search, replace in rewrite(after, device, changed))
    undone = patch.apply({path: after}, back, [path])[path] if back else after
    if preflight.digest(undone) != preflight.digest(before):
        return None
    return frozenset((name, _way(value, new[name].value)) for name, value in changed.items())


def _values(source: str, device: str) -> dict[str, Constant]:
    return {constant.name: constant for constant in find(source, device)}


def _way(old: Value, new: Value) -> str:
    if isinstance(old, bool) or not isinstance(old, int | float) or not isinstance(new, int | float):
        return render(new)
    return "up" if new > old else "down"
