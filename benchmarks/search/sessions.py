"""One real session of each proposer at equal compute: how far each brings train.py on a CPU.

    python -m benchmarks.search.sessions [NAME …] [--tflop 24] [--jobs 2] [--folder DIR] [--json FILE] [--quick]

NAME: knobs, centaur, evolve, llm or portfolio. Each is `overnight run` in a repository of its own with the train.py of
the recorded trials, under the confirming judge and without ending runs early, one core each, until what it has trained,
fresh seeds included, comes to --tflop. In the end train.py as it was and what the session is left with are trained on
SEEDS that it never saw. No model can be asked here: centaur is CMA-ES alone and portfolio knobs and evolve; `llm` sends
the edits of tests/agent/edits/good, in an order drawn by lot, so that its row says what such edits come to and nothing
of a model. With --folder the same command goes on where it was. Trials are added to results/search_trials.parquet,
ledgers to results/sessions. Without a NAME: the table of what --json has.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from random import Random
from shutil import copyfile
from typing import Any

from agent.folder import EXECUTION, SessionFolder
from agent.ledger import read
from agent.proposers.point import applied, edits_of
from agent.stops import experiments
from agent.trial import read_run
from agent.values import Record
from benchmarks.records import facts, headline, markdown, mean_sd, options, save
from benchmarks.repeat_keeps import candidate_of, open_bench, score
from benchmarks.search.compare import point_of
from benchmarks.search.space import BUDGET, EDITS, Space, default_space
from benchmarks.search.trials import FILE, Row, load
from benchmarks.search.trials import save as save_rows
from benchmarks.wire_session import project
from corpus.budget import Budget

ROOT = Path(__file__).parents[2]
LEDGERS = FILE.parent / "sessions"
NAMES = ("knobs", "centaur", "evolve", "llm", "portfolio")
SEEDS = (701, 702, 703)
TFLOP, RUN = 24.0, Budget.parse(BUDGET).amount / 1e12
AHEAD = 3.0  # runs of a trial, about: how many trials are begun before the compute is added up again


def session(name: str, folder: Path, tflop: float, core: int) -> SessionFolder:
    """Run it, or go on with it, in `folder`."""
    root = folder / name
    if not root.exists():
        source = folder / f"{name}.py"
        source.write_text(default_space().source)
        project(root, source)
        lines = [json.dumps({"tool": json.loads(file.read_text())}) for file in Random(name).sample(EDITS, len(EDITS))]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    found = SessionFolder(root, name)
    while (left := tflop - trained(found)) > 0:
        before = len(_records(found))
        wanted = experiments(_records(found)) + max(1, int(left / RUN / AHEAD))
        command = [sys.executable, "-m", "agent", "run", "--tag", name, "--proposer", name, "--pruner", "none"]
        command += ["--budget", BUDGET, "--experiments", str(wanted)]
        if name == "llm":
            command += ["--model", f"scripted:{folder / 'llm.jsonl'}"]
        with (folder / f"{name}.log").open("a") as log:
            env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            pinned = ["taskset", "-c", str(core), *command]
            subprocess.run(pinned, cwd=root, env=env, stdout=log, stderr=log, check=False)
        if len(_records(found)) == before:
            print(f"{name}: ended early, see {folder / f'{name}.log'}", flush=True)
            break
    return found


def _records(folder: SessionFolder) -> list[Record]:
    return list(read(folder.ledger)) if folder.ledger.exists() else []


def runs(folder: SessionFolder) -> Iterator[dict[str, Any]]:
    """What the harness measured of every run that ended."""
    for _, trial in folder.trials():
        for run in (*trial.runs(), *trial.defence()):
            if (run / EXECUTION).is_file():
                yield json.loads((run / EXECUTION).read_text())["measured"]


def trained(folder: SessionFolder) -> float:
    """1e12 FLOPs of all its runs."""
    return sum(run.get("flop") or 0.0 for run in runs(folder)) / 1e12


def summary(folder: SessionFolder) -> dict[str, Any]:
    """The ledger in figures, and both ends of the session on SEEDS."""
    rows = _records(folder)
    kept = [row for row in rows if row.status == "keep"]
    bench, budget = open_bench(folder)
    last = kept[-1].trial or 0
    ends = {name: candidate_of(folder, trial) for name, trial in (("before", 0), ("after", last))}
    return {
        "trials": len(rows) - 1,
        **{status: sum(row.status == status for row in rows[1:]) for status in ("keep", "crash", "reject")},
        "runs": sum(1 for _ in runs(folder)),
        "tflop": round(trained(folder), 2),
        "ledger": [kept[0].val_bpb, kept[-1].val_bpb],
        **{name: [score(bench, candidate, seed, budget) for seed in SEEDS] for name, candidate in ends.items()},
        "path": [[row.trial, row.val_bpb] for row in kept],
    }


def rows_of(name: str, folder: SessionFolder, space: Space) -> Iterator[Row]:
    """First runs of its trials, as they are recorded."""
    for record in _records(folder):
        trial = folder.trial(record.trial or 0)
        found = trial.candidate()
        if not record.trial or found is None:
            continue
        source = found[0].sources["train.py"]
        point = point_of(space, source)
        plain = applied("train.py", space.source, edits_of("train.py", space.source, "cpu", point))
        change = "" if plain == source else record.description
        origin = {"hardware": record.hardware, "torch": record.torch, "data": record.data, "budget": record.budget}
        row = Row(f"session {name}", record.trial, point, record.seed or 0, change=change, **origin)
        run, seconds = read_run(trial.run(0)), record.total_seconds or 0.0
        yield row.ran(run, trial.curve(), seconds) if run else row.failed(record.status, record.reason[:300], seconds)


def record_rows(found: Mapping[str, SessionFolder]) -> None:
    """Add their trials to the recorded ones, in place of those of earlier sessions of that name."""
    space, replaced = default_space(), {f"session {name}" for name in found}
    rows = [row for row in load() if row.source not in replaced]
    save_rows([*rows, *(row for name, folder in found.items() for row in rows_of(name, folder, space))])


def table(told: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["proposer", "trials", "kept", "crashed", "refused", "runs", "1e12 FLOPs", "before", "after", "gain"]
    lines = []
    for name, row in told.items():
        gains = [before - after for before, after in zip(row["before"], row["after"], strict=True)]
        counts = [str(row[what]) for what in ("trials", "keep", "crash", "reject", "runs")]
        ends = [f"{statistics.fmean(row[end]):.4f}" for end in ("before", "after")]
        lines.append([name, *counts, f"{row['tflop']:.1f}", *ends, mean_sd(gains, "+.4f")])
    return markdown(head, lines)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tflop", type=float, help=f"of one session ({TFLOP:g})")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the sessions here")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"NAME: expected one of {' '.join(NAMES)}, found {' '.join(sorted(unknown))}")
    result = (
        json.loads(args.json.read_text()) if args.json and args.json.exists() else facts(budget=BUDGET, sessions={})
    )
    tflop = args.tflop or (2 * RUN if args.quick else TFLOP)
    cores: SimpleQueue[int] = SimpleQueue()
    for core in range(args.jobs):
        cores.put(core)

    def one(name: str) -> tuple[str, SessionFolder, dict[str, Any]]:
        core = cores.get()
        folder = session(name, work, tflop, core)
        told = summary(folder)
        cores.put(core)
        print(f"{name}: {told}", flush=True)
        return name, folder, told

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(args.jobs) as pool:
        work = (args.folder or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        done = list(pool.map(one, args.names))
        if not args.quick:
            record_rows({name: folder for name, folder, _ in done})
            LEDGERS.mkdir(exist_ok=True)
            for name, folder, _ in done:
                copyfile(folder.ledger, LEDGERS / f"{name}.tsv")
    result["sessions"] |= {name: told for name, _, told in done}
    save(result, args.json)
    print(headline(result))
    print(table(result["sessions"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
