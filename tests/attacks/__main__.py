"""What stops which attack, on which level, and that nothing honest is stopped: tables for people.

    python -m tests.attacks [escapes] [forgeries] [words] [honest]      all four where none is named; `make attack`

Exit 1 if an attack comes through at level bwrap, or an honest candidate does not.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from agent.cell import Cell
from agent.config import Task
from agent.machine import probe
from agent.smoke import Pace
from agent.trial import Bench
from sandbox.isolation import Isolation, Level, detect
from sandbox.library import compiled
from tests.attacks import escape, forgeries, honest, metric, words
from tests.attacks.world import text_data

PROCESS = Isolation(Level.PROCESS)
Row = tuple[str, ...]  # the cell behind the name says NOTHING, or any of them WRONG


def escapes(isolation: Isolation, folder: Path) -> Iterator[Row]:
    """Every program at bwrap, and at process, to show that it works where there is no wall."""
    yield "attack", "stopped at bwrap by", "at process by"
    with escape.outside() as world:
        for name in escape.PROGRAMS:
            yield name, _tried(name, isolation, world, folder), _tried(name, PROCESS, world, folder)


def _tried(name: str, isolation: Isolation, world: escape.Outside, folder: Path) -> str:
    """What stopped it, "nothing" where that is as it should be, or why it was not tried."""
    why = escape.untried(name, isolation.level)
    if why:
        return f"- ({why})"
    found = escape.attempt(name, isolation, world, folder / f"{name.replace('/', ' ')}-{isolation.level}")
    if found == escape.expected(name, isolation.level):
        return found or "nothing"
    return found if found.startswith("WRONG") else f"WRONG: {found or 'NOTHING'}"


def forged(isolation: Isolation, folder: Path) -> Iterator[Row]:
    """Every attack on the number in preflight, and with preflight off at bwrap and at process."""
    yield "attack on the number", "stopped at bwrap by", "at process by", "preflight rule"
    with text_data() as data:
        yield from _forged((_bench(isolation, folder, data), _bench(PROCESS, folder, data)), folder)


def _forged(benches: tuple[Bench, Bench], folder: Path) -> Iterator[Row]:
    unharmed, why = metric.attempt(benches[0], (), folder / "honest")
    if unharmed is None:
        sys.exit(f"attack: expected the honest candidate to pass, found: {why}")
    for name, attack in forgeries.ATTACKS.items():
        rules = metric.refused(attack.edits)
        if attack.stopped_by == "preflight":
            yield name, "preflight" if rules else "NOTHING", "preflight", rules
            continue
        ends = []
        for number, bench in enumerate(benches):
            value, why = metric.attempt(bench, attack.edits, folder / f"{name}-{number}", attack.budget)
            ends.append(metric.outcome(value, why, unharmed).partition(":")[0])
        yield name, *ends, rules or "-"


def spoken(_: Isolation, folder: Path) -> Iterator[Row]:
    """Words that try to be more than words, in one session."""
    yield "attack by words", "stayed words in"
    seen = words.night(folder)
    for name in words.ATTACKS:
        yield name, words.outcome(name, seen)


def passed(isolation: Isolation, folder: Path) -> Iterator[Row]:
    """Honest candidates, the tiny ones and the edits of the real train.py: all of them are to pass."""
    yield "honest candidate", "bits per byte", "of"
    with text_data() as data:
        yield from _passed(_bench(isolation, folder, data), folder)


def _passed(bench: Bench, folder: Path) -> Iterator[Row]:
    tried = [(name, edits, f"{metric.STEPS}steps", metric.TINY) for name, edits in honest.HONEST.items()]
    tried += [(name, edits, honest.BUDGET, honest.TRAIN) for name, edits in honest.of_train_py().items()]
    for name, edits, budget, text in tried:
        value, why = metric.attempt(bench, edits, folder / name, budget, text)
        of = "the tiny train.py" if text is metric.TINY else "train.py"
        yield name, f"NOTHING, {why}" if value is None else f"{value:.4f}", of


def _bench(isolation: Isolation, folder: Path, data: Path) -> Bench:
    if isolation.level is Level.BWRAP:
        isolation = replace(isolation, library=compiled(folder / "bytecode"))
    fixed = {"prepare.py": (metric.ROOT / "prepare.py").read_text()}
    return Bench(Task(), fixed, Cell(data, probe(), isolation), Pace(5, 60, 2, 0.0))


TABLES: dict[str, Callable[[Isolation, Path], Iterator[Row]]] = {
    "escapes": escapes,
    "forgeries": forged,
    "words": spoken,
    "honest": passed,
}


def main() -> int:
    isolation, names = detect(), sys.argv[1:] or list(TABLES)
    if isolation.level is not Level.BWRAP or not set(names) <= set(TABLES):
        sys.exit(f"attack: expected bubblewrap and {', '.join(TABLES)}, found {names}; {isolation.why}")
    print(f"as {'root' if os.geteuid() == 0 else 'an ordinary user'}; preflight is off for all but its own column")
    rows = failures = 0
    for table in names:
        with tempfile.TemporaryDirectory() as folder:
            for number, row in enumerate(TABLES[table](isolation, Path(folder))):
                print(
                    f"| {' | '.join(row)} |" if number else f"\n| {' | '.join(row)} |\n|{'---|' * len(row)}", flush=True
                )
                wrong = row[1].startswith("NOTHING") or any(cell.startswith("WRONG") for cell in row)
                rows, failures = rows + (number > 0), failures + wrong
    print(f"\n{rows} rows, {failures} of them wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
