"""How long preflight takes on a file of 1,000 lines: train.py, lengthened by renamed copies of its own functions.

    python benchmarks/preflight.py [--quick] [--json FILE]

Each round checks a source never seen before. "edit of main": the parent is known, as in a session; `main` is changed.
"all new": nothing is known, each statement has a new comment, and the file is its own parent. Parsing by libcst alone
is timed beside them. Wall times in milliseconds.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import libcst

from agent import preflight

LINES = 1000
BAR_MS = 150


def lengthened(source: str, lines: int) -> str:
    """`source` with renamed copies of its functions and classes, until it has `lines` lines or just more."""
    head, guard = source.rsplit('\n\nif __name__ == "__main__":', 1)
    blocks = [
        (node.name, ast.get_source_segment(source, node) or "")
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name not in {"GPTConfig", "build_model", "main"}
    ]
    copy = 0
    while head.count("\n") + guard.count("\n") + 3 < lines:
        name, text = blocks[copy % len(blocks)]
        head += "\n\n\n" + text.replace(name, f"{name}_{copy}", 1)
        copy += 1
    return head.rstrip("\n") + '\n\n\nif __name__ == "__main__":' + guard


def timed(action: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def measure(source: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by what was done."""
    times: dict[str, list[float]] = {"parse alone": [], "edit of main": [], "all new": []}
    for number in range(rounds):
        edited = source.replace("def main() -> None:\n", f"def main() -> None:\n    number = {number}\n")
        new = re.sub(r"^(?=[a-zA-Z@])", f"# {number}\n", source, flags=re.MULTILINE)
        times["parse alone"].append(timed(lambda: libcst.parse_module(source)))
        times["all new"].append(timed(lambda new=new: preflight.check(new, new)))
        preflight.check(source, source)
        times["edit of main"].append(timed(lambda edited=edited: preflight.check(edited, source)))
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"n": len(values), "median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds instead of 100")
    parser.add_argument("--json", type=Path, help="write the raw times here as well")
    options = parser.parse_args()
    train = Path(__file__).resolve().parent.parent / "train.py"
    source = lengthened(train.read_text(encoding="utf-8"), LINES)
    times = measure(source, 15 if options.quick else 100)
    load = os.getloadavg()[0]
    print(f"{len(source.splitlines())} lines, {len(source)} characters; load {load:.1f} on {os.cpu_count()} cores")
    for name, values in times.items():
        print(f"{name:<20} " + "  ".join(f"{key} {value:.4g}" for key, value in spread(values).items()) + " ms")
    if options.json:
        facts = {"python": platform.python_version(), "machine": platform.machine(), "load": load}
        options.json.write_text(json.dumps({**facts, "lines": source.count("\n"), "ms": times}) + "\n")
    late = statistics.median(times["edit of main"]) > BAR_MS
    print(f"bar: median <= {BAR_MS} ms for an edit of main: {'missed' if late else 'met'}")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
