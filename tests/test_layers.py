"""Imports only point down. Every module has a layer; one without is refused."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Lowest first. Modules of one layer do not import each other, but for those of one package listed in FAMILIES.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("corpus", "prepare", "sandbox.metrics"),
    (
        "sandbox.limits",
        "sandbox.env",
        "sandbox.workspace",
        "sandbox.tree",
        "sandbox.pool",
        "sandbox.seccomp",
        "sandbox.cgroup",
        "sandbox.filled",
        "sandbox.stage",
        "sandbox.library",
    ),
    ("sandbox.runner",),
    ("sandbox.bwrap",),
    ("sandbox.process",),
    ("sandbox.isolation",),
    ("agent.errors", "agent.values", "agent.text"),
    (
        "agent.clients",
        "agent.conduct",
        "agent.names",
        "agent.constants",
        "agent.facts",
        "agent.dialogue",
        "agent.judge",
        "agent.kinds",
        "agent.pruner",
        "agent.noise",
        "agent.steering",
        "agent.turns",
        "agent.ledger",
        "agent.machine",
        "agent.patch",
        "agent.preflight",
        "agent.prompt",
        "agent.recording",
        "agent.reply",
        "agent.report",
        "agent.repo",
        "agent.rules",
        "agent.stops",
        "agent.config",
        "agent.folder",
        "agent.replay",
    ),
    ("agent.bandit", "agent.cell", "agent.experience", "agent.reruns"),
    ("agent.pruning", "agent.scoring"),
    ("agent.smoke", "agent.watcher"),
    ("agent.candidate", "agent.trial", "agent.proposers"),
    ("agent.desk", "agent.forecast", "agent.memory", "agent.recheck"),
    ("agent.beginning", "agent.flight", "agent.measuring", "agent.standing"),
    ("agent.loop",),
    ("agent.session",),
    ("agent.lineup",),
    ("agent.reading",),
    ("agent.cli",),
    ("agent.__main__",),
)
# Within one layer: one thing in several files, or a lower half that several share.
FAMILIES: tuple[set[str], ...] = (
    {"agent.errors", "agent.values"},
    {"prepare", "corpus", "sandbox.metrics"},
    {"agent.preflight", "agent.conduct", "agent.facts", "agent.names", "agent.rules"},
    {"agent.prompt", "agent.clients"},
    {"agent.prompt", "agent.constants"},
    {"agent.judge", "agent.config", "agent.noise"},
    {"agent.kinds", "agent.turns", "agent.constants", "agent.patch", "agent.preflight"},
    {"agent.prompt", "agent.steering", "agent.ledger", "agent.turns"},
    {"agent.report", "agent.replay", "agent.ledger"},
)


def modules() -> list[Path]:
    found = [path for folder in ("agent", "sandbox", "corpus") for path in (ROOT / folder).rglob("*.py")]
    return [*found, ROOT / "prepare.py"]


def name_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("agent", "sandbox", "corpus", "prepare")}


def place(module: str) -> tuple[int, str] | None:
    """Layer and its entry for a module: the longest entry that is the module or a package around it."""
    hits = [
        (len(entry), level, entry)
        for level, entries in enumerate(LAYERS)
        for entry in entries
        if module == entry or module.startswith(entry + ".")
    ]
    return max(hits)[1:] if hits else None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    module = name_of(path)
    if module in ("agent", "sandbox"):
        assert not imports(path)
        return
    here = place(module)
    assert here is not None, f"{module} has no layer: give it one in LAYERS"
    for target in sorted(imports(path)):
        there = place(target)
        if there is None or there[1] == here[1]:
            continue
        allowed = there[0] < here[0] or any({here[1], there[1]} <= family for family in FAMILIES)
        assert allowed, f"{module} imports {target}, which is not below it"


def test_parent_side_of_the_sandbox_needs_the_standard_library_only() -> None:
    import sys

    for path in (ROOT / "sandbox").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "sandbox"}, f"{path.name} imports {name}"
