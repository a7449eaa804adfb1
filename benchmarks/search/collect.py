"""Real trials of train.py on a CPU, recorded: what searches can then be compared on in seconds.

    python -m benchmarks.search.collect SOURCE=COUNT … [--jobs 2]

SOURCE: default (train.py as it is, from the second on with other seeds), random, tpe, cmaes (plain Optuna over all
knobs), near (one to three knobs away from train.py's own values), repeat (an earlier trial that went well, on another
seed), model (edits as a model would send them, from tests/agent/edits/good; when each has run, once more with one to
three knobs turned). Each trial runs as in a session: smoke, training in the sandbox, scoring by the referee, under
limits that follow from a run of train.py as it is. After every trial a row is added to results/search_trials.parquet;
end it whenever you like, the same command goes on until there are COUNT of each SOURCE.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna

from agent import candidate as candidates
from agent import reply
from agent.cell import Cell
from agent.config import Task
from agent.constants import render, rewrite
from agent.errors import ProposalError
from agent.machine import probe
from agent.trial import Bench
from agent.values import Candidate, Edit, Proposal
from benchmarks.search.space import BUDGET, EDITS, SEED, Point, Space, default_space
from benchmarks.search.trials import Row, load, save
from corpus.home import data_folder
from sandbox.isolation import detect
from sandbox.pool import Slot

ROOT = Path(__file__).parents[2]
SOURCES = ("default", "random", "tpe", "cmaes", "near", "repeat", "model")
BUSY = 2.0  # how much slower the machine may become while others work on it, too


class Collector:
    """rows: everything recorded so far. Draws under a lock; training, which takes all the time, is outside of it."""

    def __init__(self, space: Space, wanted: dict[str, int]) -> None:
        self.space, self.wanted, self.rows = space, wanted, load()
        machine = probe()
        fixed = {"prepare.py": (ROOT / "prepare.py").read_text()}
        self.bench = Bench(Task(), fixed, Cell(data_folder(None), machine, detect()))
        meta = json.loads((data_folder(None) / "meta.json").read_text())
        self.origin = {"hardware": machine.hardware, "torch": machine.torch, "data": str(meta["data_id"])}
        self.lock, self.flying = threading.Lock(), list[tuple[str, int]]()
        self._pace()

    def _pace(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            candidate, told = candidate_of(self.space, {}), {"slot": Slot(0, "cpu0"), "cancel": threading.Event()}
            smoke = self.bench.smoke(candidate, Path(name) / "smoke", BUDGET, Slot(0, "cpu0"))
            run = self.bench.run(candidate, Path(name) / "run", seed=SEED, budget=BUDGET, smoke=smoke, **told)
        print(f"train.py as it is: {run.metrics.val_bpb if run.metrics else run.failure}", flush=True)
        pace = self.bench.paced(smoke, run).pace
        slower = {name: BUSY * seconds for name in ("smoke", "train", "score") if (seconds := getattr(pace, name))}
        self.bench = replace(self.bench, pace=replace(pace, **slower))

    def work(self, worker: int) -> None:
        """Trials until there are enough of each source."""
        slot = Slot(worker, f"cpu{worker}", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        while True:
            with self.lock:
                if (source := self._next()) is None:
                    return
                number = self._number(source)
                self.flying.append((source, number))
                point, seed = self._draw(source, number)
            change = EDITS[(number - 1) % len(EDITS)].stem if source == "model" else ""
            row = self._run(Row(source, number, point, seed, change=change, **self.origin), slot)
            with self.lock:
                self.flying.remove((source, number))
                self.rows.append(row)
                save(self.rows)
                value = "        " if row.val_bpb is None else f"{row.val_bpb:.6f}"
                print(f"{len(self.rows):>4}  {source:<7} {value}  {row.reason[:100]}", flush=True)

    def _taken(self, source: str) -> set[int]:
        recorded = {row.number for row in self.rows if row.source == source}
        return recorded | {number for name, number in self.flying if name == source}

    def _number(self, source: str) -> int:
        """The first one that is neither recorded nor running."""
        taken = self._taken(source)
        return next(number for number in range(1, len(taken) + 2) if number not in taken)

    def _next(self) -> str | None:
        """The source that has the smallest share of what is wanted of it."""
        done = {source: len(self._taken(source)) / n for source, n in self.wanted.items()}
        source = min(done, key=lambda name: done[name])
        return source if done[source] < 1 else None

    def _draw(self, source: str, number: int) -> tuple[Point, int]:
        if source == "default":
            return self.space.default, SEED if number == 1 else 2000 + number
        if source == "repeat":
            well = [row for row in self.rows if row.val_bpb is not None and row.source not in ("repeat", "model")]
            if not well:
                sys.exit("repeat: expected a recorded trial with a score, found none; record others first")
            row = well[number * 7919 % len(well)]
            return row.point, 1000 + number
        told = [(row.point, row.val_bpb) for row in self.rows if row.source == source]
        return self.space.draw(source, number, told), SEED

    def _run(self, row: Row, slot: Slot) -> Row:
        began = time.time()
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            try:
                candidate = candidate_of(self.space, row.point, row.change)
                smoke = self.bench.smoke(candidate, work / "smoke", BUDGET, slot)
            except ProposalError as error:
                return row.failed("reject", str(error).splitlines()[0][:300], time.time() - began)
            told = {"smoke": smoke, "slot": slot, "cancel": threading.Event()}
            run = self.bench.run(candidate, work / "run", seed=row.seed, budget=BUDGET, **told)
            curve = work / "run" / "curve.jsonl"
            lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.is_file() else []
        return row.ran(run, lines, time.time() - began)


def candidate_of(space: Space, point: Point, change: str = "") -> Candidate:
    """train.py with these constants and the edit of that name, checked as a session would."""
    edits = tuple(Edit("train.py", before, after) for before, after in rewrite(space.source, "cpu", point))
    described = ", ".join(f"{name} {render(value)}" for name, value in point.items())
    if change:
        edits += named_edit(change).edits
        described = change
    sources = {"train.py": space.source}
    if not edits:
        return Candidate(Proposal((), "unchanged"), sources, "0" * 40, candidates.digest_of(sources), "")
    return candidates.build(Proposal(edits, described[:100]), sources, "0" * 40, Task(), candidates.Tried())


def named_edit(name: str) -> Proposal:
    return reply.parse_tool_call(json.loads(next(file for file in EDITS if file.stem == name).read_text()))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("wanted", nargs="+", metavar="SOURCE=COUNT")
    options.add_argument("--jobs", type=int, default=2)
    args = options.parse_args()
    wanted = {name: int(count) for name, count in (pair.split("=") for pair in args.wanted)}
    if unknown := set(wanted) - set(SOURCES):
        options.error(f"SOURCE: expected one of {' '.join(SOURCES)}, found {' '.join(sorted(unknown))}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    collector = Collector(default_space(), wanted)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(collector.work, range(args.jobs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
