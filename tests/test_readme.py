"""The README is true: its tree is the tree, and what it names exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
UNNAMED = {"__init__.py", "__main__.py", ".gitignore", "conftest.py"}


def tree() -> dict[str, str]:
    """Path → note, from the indented block; a line may name several files."""
    block = README.split("## The tree")[1].split("```")[1]
    found: dict[str, str] = {}
    parent = ""
    for line in block.strip("\n").splitlines():
        match = re.match(r"((?:\s*\S+)+?)\s{2,}(.*)", line)
        assert match, line
        names, note = match.groups()
        inside = parent if line.startswith(" ") else ""
        for name in names.split():
            found[inside + name] = note
        if not line.startswith(" ") and names.endswith("/"):
            parent = names
    return found


def tracked() -> set[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listing.stdout.split())


def test_everything_in_the_tree_exists_and_has_a_note() -> None:
    for name, note in tree().items():
        assert (ROOT / name).exists(), f"{name} is in the README and not in the tree"
        assert note


def test_everything_that_exists_is_in_the_tree() -> None:
    named = tree()
    for path in tracked():
        parts = path.split("/")
        if parts[0].startswith(".") or parts[-1] in UNNAMED:
            continue
        if parts[0] in ("agent", "sandbox") and len(parts) == 2:
            assert path in named, f"{path} is missing in the README's tree"
        else:
            assert any(path == name or (name.endswith("/") and path.startswith(name)) for name in named), path


def test_every_command_is_documented() -> None:
    import typer

    from agent.cli import app

    group = typer.main.get_group(app)
    documented = set(re.findall(r"[a-z]+", " ".join(re.findall(r"^\| `overnight ([^`]+)`", README, re.MULTILINE))))
    assert group.commands
    assert set(group.commands) <= documented


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
