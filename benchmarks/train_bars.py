"""train.py on this CPU against its three bars: score at a FLOP budget, speed against a plain matmul, start-up.

    python -m benchmarks.train_bars [--quick] [--seeds N] [--set NAME=VALUE …] [--json FILE]

Prints a table; raw results go to FILE. `--set` changes constants of train.py, to see what one of them is worth. Needs
prepared data (`python prepare.py`). Speed is measured in one process, training steps and matmuls in turn, so that both
see the same machine.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prepare
import train
from sandbox.env import child_env

ROOT = Path(__file__).resolve().parents[1]
BARS = {"val_bpb": 1.34, "matmul_share": 0.45, "startup_seconds": 5.0}
BUDGET, QUICK_BUDGET = "1.1e13flop", "5e11flop"
VOCAB, LENGTH, SQUARE = 1024, 256, 2048

TRAIN = """
import sys, time
import prepare
prepare.SEED = int(sys.argv[1])
import json, train
vars(train).update(json.loads(sys.argv[3]))

def first(feed, B, T, draw=prepare.Feed.next):
    batch = draw(feed, B, T)
    print("startup_seconds:", time.time() - float(sys.argv[2]), flush=True)
    prepare.Feed.next = draw
    return batch

prepare.Feed.next = first
train.main()
"""


def env_in(folder: str) -> dict[str, str]:
    """What a trial that works there gets."""
    return child_env(Path(folder), {"PYTHONPATH": str(ROOT)})


def train_once(seed: int, budget: str, constants: dict[str, Any]) -> dict[str, float]:
    """One run as by hand; its summary, and the seconds from the start of the process to the first real batch."""
    command = [sys.executable, "-c", TRAIN, str(seed), str(time.time()), json.dumps(constants)]
    with tempfile.TemporaryDirectory() as folder:
        env = env_in(folder) | {"OVERNIGHT_BUDGET": budget}
        run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    startup = next(line for line in run.stdout.splitlines() if line.startswith("startup_seconds"))
    lines = [startup, *run.stdout.rpartition("---\n")[2].splitlines()]
    return {"seed": seed} | {key: float(value) for key, _, value in (line.partition(":") for line in lines) if value}


class Noise:
    """A feed of random tokens, half way through its budget."""

    progress = 0.5

    def next(self, rows: int, length: int) -> prepare.Batch:
        tokens = torch.randint(VOCAB, (rows, length + 1))
        return prepare.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def trainer(seed: int) -> tuple[Callable[[], None], int]:
    """A function that makes one training step, and the matmul weights of its model."""
    torch.manual_seed(seed)
    feed, model = Noise(), train.build_model(train.configure(VOCAB, LENGTH))
    optimizers = train.make_optimizers(train.param_groups(model))

    def step() -> None:
        train.accumulate(model, feed, LENGTH)
        train.set_schedules(optimizers, feed.progress)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step, sum(m.weight.numel() for m in model.modules() if isinstance(m, train.Linear))


def measure_speed(seed: int, rounds: int, steps: int = 4) -> dict[str, Any]:
    """In this process: `rounds` times `steps` training steps, then square matmuls of the same dtype and threads."""
    prepare.keep_memory()
    step, weights = trainer(seed)
    square = torch.randn(SQUARE, SQUARE, dtype=train.DTYPES[train.DTYPE])
    rows, micro_steps = train.split_batch(LENGTH)
    work = 6 * weights * rows * micro_steps * LENGTH

    def rate(flop: float, work: Callable[[], Any], times: int) -> float:
        return flop * times / prepare.stopwatch(lambda: [work() for _ in range(times)])

    def pair() -> dict[str, float]:
        return {"train": rate(work, step, steps), "matmul": rate(2 * SQUARE**3, lambda: square @ square, 3)}

    pair()
    pairs = [pair() for _ in range(rounds)]
    facts = {"dtype": train.DTYPE, "threads": torch.get_num_threads(), "matmul_weights": weights, "seed": seed}
    return facts | {"pairs": pairs, "share": statistics.median(p["train"] / p["matmul"] for p in pairs)}


def speed_once(seed: int, rounds: int, constants: dict[str, Any]) -> dict[str, Any]:
    changed = [f"--set={name}={value!r}" for name, value in constants.items()]
    command = [sys.executable, "-m", "benchmarks.train_bars", "--speed", str(seed), "--rounds", str(rounds), *changed]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(command, env=env_in(folder), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def row(name: str, values: list[float], bar: float, atleast: bool, unit: str = "") -> str:
    median = statistics.median(values)
    met = "yes" if (median >= bar if atleast else median <= bar) else "no"
    sign = "≥" if atleast else "≤"
    return (
        f"| {name} | {sign} {bar}{unit} | {median:.4g}{unit} | {statistics.fmean(values):.4g}{unit} "
        f"| {min(values):.4g} – {max(values):.4g} | {len(values)} | {met} |"
    )


def table(result: dict[str, Any]) -> str:
    runs, speeds = result["runs"], result["speed"]
    head = [f"{result['date']}, {result['machine']}, torch {result['torch']}, {speeds[0]['dtype']}", ""]
    rates = {
        kind: statistics.median(pair[kind] for s in speeds for pair in s["pairs"]) / 1e9 for kind in ("train", "matmul")
    }
    return "\n".join(
        [
            *head,
            "| what | bar | median | mean | spread | n | met |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            row(f"val_bpb at {result['budget']}", [r["val_bpb"] for r in runs], BARS["val_bpb"], False),
            row("share of the matmul rate", [s["share"] for s in speeds], BARS["matmul_share"], True),
            row("start-up", [r["startup_seconds"] for r in runs], BARS["startup_seconds"], False, " s"),
            "",
            f"Training {rates['train']:.1f} GFLOP/s, matmul {rates['matmul']:.1f} GFLOP/s (medians), "
            f"{speeds[0]['threads']} threads, {len(speeds[0]['pairs'])} pairs a seed.",
        ]
    )


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return f"{os.cpu_count()} cores, {names[0].partition(':')[2].strip() if names else platform.processor()}"


def constant(text: str) -> tuple[str, Any]:
    """NAME=VALUE of a constant that train.py has."""
    name, _, value = text.partition("=")
    if not hasattr(train, name):
        raise argparse.ArgumentTypeError(f"expected a constant of train.py, found {name}")
    return name, ast.literal_eval(value)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train.py against its bars on this CPU")
    parser.add_argument("--quick", action="store_true", help=f"one seed at {QUICK_BUDGET}: shows that it works, no bar")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--speed", type=int, metavar="SEED", help="measure speed here and print it as JSON")
    parser.add_argument("--rounds", type=int, default=20, help="training and matmul in turn, so often")
    parser.add_argument("--set", type=constant, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path, help="keep the raw results here")
    return parser.parse_args()


def main() -> None:
    args = options()
    constants = dict(args.set)
    vars(train).update(constants)
    if args.speed is not None:
        print(json.dumps(measure_speed(args.speed, args.rounds)))
        return
    seeds = range(1, 2 if args.quick else args.seeds + 1)
    budget, rounds = (QUICK_BUDGET, 3) if args.quick else (BUDGET, args.rounds)
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "budget": budget,
        "constants": constants,
        "speed": [speed_once(seed, rounds, constants) for seed in seeds],
        "runs": [train_once(seed, budget, constants) for seed in seeds],
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
