"""All attacks on all levels, as a table: `make attack`. Exit 1 if one comes through at level bwrap."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from agent.cell import Cell
from agent.config import Task
from agent.machine import probe
from agent.trial import Bench, Pace
from sandbox.isolation import Isolation, Level, detect
from tests.attacks import escape, metric
from tests.attacks.world import text_data


def escapes(isolation: Isolation, folder: Path) -> dict[str, tuple[str, str]]:
    """Attack → what stopped it at bwrap and at process ("-": not tried, it would harm this machine)."""
    found = {}
    with escape.outside(folder / "outside") as world:
        for number, name in enumerate(escape.PROGRAMS):
            inside = escape.attempt(name, isolation, world, folder / f"{number}-bwrap")
            control = name in escape.CONTROLS
            bare = (
                escape.attempt(name, Isolation(Level.PROCESS), world, folder / f"{number}-process") if control else "-"
            )
            found[name] = (inside or "NOTHING", bare or "nothing")
    return found


def forgeries(isolation: Isolation, folder: Path) -> dict[str, tuple[str, str, str]]:
    """Attack → what stops it in preflight, and with preflight off at bwrap and at process."""
    data, fixed = text_data(folder / "data"), {"prepare.py": (metric.ROOT / "prepare.py").read_text()}
    found = {}
    benches = [
        Bench(Task(), fixed, Cell(data, probe(), level), Pace(5, 20, 2))
        for level in (isolation, Isolation(Level.PROCESS))
    ]
    honest, _ = metric.attempt(benches[0], (), folder / "honest")
    for name, attack in metric.ATTACKS.items():
        budget = "1e9flop" if attack.stopped_by == "FLOPs" else "20steps"
        results = []
        for number, bench in enumerate(benches):
            value, why = metric.attempt(bench, attack.edits, folder / f"{name}-{number}", budget)
            results.append(
                why.partition(":")[0] if value is None else "number unmoved" if value == honest else "NOTHING"
            )
        found[name] = (metric.refused(attack.edits) or "-", *results)
    return found


def main() -> int:
    isolation = detect()
    if isolation.level is not Level.BWRAP:
        sys.exit(f"attack: expected bubblewrap, found that {isolation.why}")
    print(f"as {'root' if os.geteuid() == 0 else 'an ordinary user'}; preflight is off for all but its own column")
    with tempfile.TemporaryDirectory() as name:
        escaped, forged = escapes(isolation, Path(name)), forgeries(isolation, Path(name))
    print("\n| attack | stopped at bwrap by | at process by |\n|---|---|---|")
    for attack, (inside, bare) in escaped.items():
        print(f"| {attack} | {inside} | {bare} |")
    print("\n| attack on the number | preflight rule | stopped at bwrap by | at process by |\n|---|---|---|---|")
    for attack, (rule, inside, bare) in forged.items():
        print(f"| {attack} | {rule} | {inside} | {bare} |")
    survivors = sum("NOTHING" in row[0] for row in escaped.values()) + sum(
        row[1] == "NOTHING" for row in forged.values()
    )
    print(f"\n{len(escaped) + len(forged)} attacks, {survivors} survivors at bwrap")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
