"""What a candidate changes, as far as it says whether an early look can judge it. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.turns import turned

# What looks worse early and may be better in the end, or the other way round: rates, schedules, batches, averages.
_PACE = re.compile(
    r"(?:^|_|\.)(?:lr|lrs|rate|batch|warm\w*|sched\w*|anneal\w*|cool\w*|decay|momentum|betas?|ema|averag\w*|accumul\w*|policy)"
    r"(?:_|\d|$)|schedule|batch_size",
    re.IGNORECASE,
)
DECEPTIVE = ("schedule", "data", "loss")  # categories: other texts or another loss are not the incumbent's at a share


@dataclass(frozen=True)
class Kind:
    """code: more than constants. pace: of what losses are taken over, or of how they fall; early looks deceive."""

    code: bool
    pace: bool

    def learns_from(self, other: Kind) -> bool:
        """Whether trials of that kind say how far early looks deceive about this one: its own, and harder ones."""
        return self.code == other.code and (other.pace or not self.pace)


def kind_of(before: Mapping[str, str], after: Mapping[str, str], category: str, device: str) -> Kind:
    """Of the change from one set of target files to another. category: what its author calls it."""
    turn = turned(before, after, device)
    names = changed(before, after) if turn is None else {name for name, _ in turn}
    return Kind(turn is None, category in DECEPTIVE or any(_PACE.search(name) for name in names))


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Names of functions, methods and assigned names whose text differs; sources that are no Python have none."""
    found: set[str] = set()
    for path in after:
        old, new = _definitions(before.get(path, "")), _definitions(after[path])
        found |= {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    return found


def _definitions(source: str) -> dict[str, str]:
    try:
        return dict(_named(ast.parse(source), ""))
    except (SyntaxError, ValueError):
        return {}


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Each name with all that is assigned to it or defined under it, in order."""
    parts: dict[str, list[str]] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _named(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            parts.setdefault(prefix + child.name, []).append(ast.dump(child))
        elif isinstance(child, ast.If | ast.Try):
            for name, text in _named(child, prefix):
                parts.setdefault(name, []).append(text)
        elif isinstance(child, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in child.targets if isinstance(child, ast.Assign) else [child.target]:
                parts.setdefault(prefix + ast.unparse(target), []).append(ast.dump(child))
    yield from ((name, "\n".join(texts)) for name, texts in parts.items())
