"""Does what a session kept hold on seeds it never saw? Baseline and keeps, trained again, seed by seed.

    python -m benchmarks.repeat_keeps TAG [--seeds 101 102 103] [--trial N …] [--json FILE]

Same budget, data and scoring as the session had; each pair shares its seed, so the differences are paired. The session
itself is only read. Exit 1 when no keep beats the baseline on every seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from agent.cell import Cell
from agent.config import load_task
from agent.folder import SessionFolder
from agent.ledger import read
from agent.machine import probe
from agent.repo import Repo
from agent.trial import Bench
from agent.values import Candidate
from sandbox.isolation import detect
from sandbox.pool import Slot

SLOT = Slot(0, "local")


def open_bench(folder: SessionFolder) -> tuple[Bench, str]:
    """The session's bench and its budget. Limits are those of a first run: nothing has been timed yet."""
    facts = folder.session()
    if facts is None:
        sys.exit(f"session: expected one at {folder.path}, found none")
    task = load_task(facts["task"])
    fixed = Repo(folder.root).read(facts["base"], task.fixed)
    return Bench(task, fixed, Cell(Path(facts["data"]), probe(), detect())), facts["budget"]


def candidate_of(folder: SessionFolder, trial: int) -> Candidate:
    found = folder.trial(trial).candidate()
    if found is None:
        sys.exit(f"trial {trial}: expected its candidate in {folder.trial(trial).path}, found none")
    return found[0]


def score(bench: Bench, candidate: Candidate, seed: int, budget: str) -> float:
    """val_bpb of one run with `seed`."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        smoke = bench.smoke(candidate, work / "smoke", budget, SLOT)
        done = bench.run(
            candidate, work / "run", seed=seed, budget=budget, smoke=smoke, slot=SLOT, cancel=threading.Event()
        )
    if done.metrics is None:
        sys.exit(f"seed {seed}: expected a score, found: {done.failure}")
    return done.metrics.val_bpb


def table(names: dict[int, str], scores: dict[int, list[float]], seeds: list[int]) -> str:
    lines = [
        f"| trial | what | {' | '.join(f'seed {seed}' for seed in seeds)} | mean gain | sd of gains | every seed |"
    ]
    lines.append("|---" * (len(seeds) + 5) + "|")
    for trial, values in scores.items():
        gains = [base - value for base, value in zip(scores[0], values, strict=True)]
        shown = " | ".join(f"{value:.6f}" for value in values)
        what, holds = names.get(trial, ""), "yes" if min(gains) > 0 else "no"
        spread = f"{statistics.stdev(gains):.6f}" if len(gains) > 1 else "-"
        tail = f"{statistics.fmean(gains):+.6f} | {spread} | {holds}" if trial else "- | - | -"
        lines.append(f"| {trial} | {what} | {shown} | {tail} |")
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("tag")
    options.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    options.add_argument("--trial", type=int, nargs="+", help="these instead of every keep")
    options.add_argument("--json", type=Path, help="keep the raw scores here")
    args = options.parse_args()
    folder = SessionFolder(Path.cwd(), args.tag)
    bench, budget = open_bench(folder)
    rows = {record.trial: record.description for record in read(folder.ledger) if record.status == "keep"}
    trials = [0, *(args.trial or [trial for trial in rows if trial])]
    scores: dict[int, list[float]] = {trial: [] for trial in trials}
    for seed in args.seeds:
        for trial in trials:
            scores[trial].append(score(bench, candidate_of(folder, trial), seed, budget))
            print(f"seed {seed}  trial {trial}  {scores[trial][-1]:.6f}", flush=True)
    if args.json:
        kept = [{"trial": t, "what": rows.get(t, ""), "val_bpb": scores[t]} for t in trials]
        args.json.write_text(json.dumps({"budget": budget, "seeds": args.seeds, "trials": kept}, indent=1) + "\n")
    print(table(rows, scores, args.seeds))
    beats = [all(b > v for b, v in zip(scores[0], scores[t], strict=True)) for t in trials[1:]]
    return 0 if any(beats) else 1


if __name__ == "__main__":
    sys.exit(main())
