"""What `sandbox.process` promises, measured: nobody survives a timeout, and a run starts at once.

    python benchmarks/kill_tree.py [--quick] [--sandbox] [--json FILE]

Survivors: each round runs into its timeout (0.3 s, then 0.2 s of grace) a command whose child double-forked, called
setsid twice and ignores SIGTERM. A round counts only if that process had said that it is away.
With --sandbox all of it happens inside bubblewrap.
Overhead: wall time of `run(true)` less that of `subprocess.run(true)`, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sandbox.bwrap import Sandbox
from sandbox.env import child_env
from sandbox.isolation import detect
from sandbox.library import compiled
from sandbox.limits import Limits
from sandbox.process import Ending, run

LIMITS = Limits(wall_seconds=0.3, grace_seconds=0.2)
ESCAPE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        print("away", flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


def survivors(word: str) -> int:
    """Processes with `word` among their arguments."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += word in (entry / "cmdline").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def kill_round(folder: Path, sandbox: Sandbox | None) -> dict[str, float]:
    """One timeout. late_ms: how long after the last limit the call returned."""
    word, log, began = f"kill-tree-{uuid.uuid4().hex}", folder / "run.log", time.perf_counter()
    command = [sys.executable, "-S", "-c", ESCAPE, word]
    execution = run(command, cwd=folder, env=child_env(folder), limits=LIMITS, log=log, sandbox=sandbox)
    took = time.perf_counter() - began
    return {
        "survivors": survivors(word),
        "away": "away" in log.read_text(),
        "timed_out": execution.ending is Ending.TIMED_OUT,
        "late_ms": round((took - LIMITS.wall_seconds - LIMITS.grace_seconds) * 1e3, 1),
    }


def overhead_round(folder: Path, sandbox: Sandbox | None) -> float:
    """Milliseconds that `run` takes longer than a plain child."""
    began = time.perf_counter()
    subprocess.run(["true"], cwd=folder, env=child_env(folder), check=True)
    plain = time.perf_counter()
    run(["true"], cwd=folder, env=child_env(folder), limits=LIMITS, log=folder / "run.log", sandbox=sandbox)
    return (time.perf_counter() - plain - (plain - began)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 rounds instead of 100")
    parser.add_argument("--sandbox", action="store_true", help="inside bubblewrap, with the library as bytecode")
    parser.add_argument("--json", type=Path, help="write the raw results there")
    options = parser.parse_args()
    count = 10 if options.quick else 100
    with tempfile.TemporaryDirectory() as name:
        library = compiled(Path(name) / "bytecode")  # as with the default data set, which takes the most binds
        sandbox = replace(detect(), library=library).around({}) if options.sandbox else None
        if options.sandbox and sandbox is None:
            sys.exit(f"kill_tree: expected bubblewrap, found that {detect().why}")
        rounds = [kill_round(Path(name), sandbox) for _ in range(count)]
        overhead = [round(overhead_round(Path(name), sandbox), 2) for _ in range(count)]
    valid = [one for one in rounds if one["away"] and one["timed_out"]]
    left = sum(one["survivors"] for one in rounds)
    late = statistics.median(one["late_ms"] for one in rounds)
    print(f"survivors {left:.0f} after {len(valid)} timeouts (of {count} rounds); returned {late:.0f} ms late (median)")
    print(f"start-up overhead {statistics.median(overhead):.1f} ms (median, n={count}, max {max(overhead):.1f} ms)")
    if options.json:
        machine = {"platform": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()}
        options.json.write_text(json.dumps({**machine, "rounds": rounds, "overhead_ms": overhead}) + "\n")
    sys.exit(1 if left or len(valid) < count else 0)


if __name__ == "__main__":
    main()
