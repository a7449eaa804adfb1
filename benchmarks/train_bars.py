"""train.py on this CPU against its three bars: score at a FLOP budget, speed against a plain matmul, start-up.

    python benchmarks/train_bars.py [--quick] [--seeds N]

Raw results go to `benchmarks/results/train_bars.json`, a table to standard output. Needs prepared data (`python
prepare.py`). Speed is measured in one process, training steps and matmuls in turn, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "train_bars.json"
BARS = {"val_bpb": 1.34, "matmul_share": 0.45, "startup_seconds": 5.0}
BUDGET, QUICK_BUDGET = "1.1e13flop", "5e11flop"
VOCAB, LENGTH, SQUARE = 1024, 256, 2048
# Threads that sleep, not spin, at a barrier: on a shared machine spinning makes a step several times slower.
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}

TRAIN = """
import sys, time
import prepare
prepare.SEED = int(sys.argv[1])
import train

def first(feed, B, T, draw=prepare.Feed.next):
    batch = draw(feed, B, T)
    print("startup_seconds:", time.time() - float(sys.argv[2]), flush=True)
    prepare.Feed.next = draw
    return batch

prepare.Feed.next = first
train.main()
"""


def train_once(seed: int, budget: str) -> dict[str, float]:
    """One run as by hand; its summary, and the seconds from the start of the process to the first real batch."""
    command = [sys.executable, "-c", TRAIN, str(seed), str(time.time())]
    with tempfile.TemporaryDirectory() as folder:
        env = ENV | {"OVERNIGHT_BUDGET": budget}
        run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    startup = next(line for line in run.stdout.splitlines() if line.startswith("startup_seconds"))
    lines = [startup, *run.stdout.rpartition("---\n")[2].splitlines()]
    return {"seed": seed} | {key: float(value) for key, _, value in (line.partition(":") for line in lines) if value}


def measure_speed(seed: int, rounds: int, steps: int = 4) -> dict[str, Any]:
    """In this process: `rounds` times `steps` training steps, then a square matmul of the same dtype and threads."""
    import torch

    import prepare
    import train

    class Noise:
        progress = 0.5

        def next(self, rows: int, length: int) -> prepare.Batch:
            tokens = torch.randint(VOCAB, (rows, length + 1))
            return prepare.Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    torch.manual_seed(seed)
    feed, model = Noise(), train.build_model(train.configure(VOCAB, LENGTH))
    optimizers = train.make_optimizers(train.param_groups(model))
    square = torch.randn(SQUARE, SQUARE, dtype=getattr(torch, train.DTYPE))
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, train.Linear))

    def training() -> None:
        for _ in range(steps):
            train.accumulate(model, feed, LENGTH)
            train.set_schedules(optimizers, feed.progress)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    def matmuls() -> None:
        for _ in range(3):
            square @ square

    training()
    matmuls()
    work = 6 * weights * steps * max(train.TOTAL_BATCH_SIZE, train.DEVICE_BATCH_SIZE * LENGTH)
    pairs = [
        {"train": work / train.stopwatch(training), "matmul": 3 * 2 * SQUARE**3 / train.stopwatch(matmuls)}
        for _ in range(rounds)
    ]
    facts = {"dtype": train.DTYPE, "threads": torch.get_num_threads(), "matmul_weights": weights, "seed": seed}
    return facts | {"pairs": pairs, "share": statistics.median(p["train"] / p["matmul"] for p in pairs)}


def speed_once(seed: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--speed", str(seed), "--rounds", str(rounds)]
    run = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
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


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description="train.py against its bars on this CPU")
    parser.add_argument("--quick", action="store_true", help=f"one seed at {QUICK_BUDGET}: shows that it works, no bar")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--speed", type=int, metavar="SEED", help="measure speed here and print it as JSON")
    parser.add_argument("--rounds", type=int, default=20, help="training and matmul in turn, so often")
    args = parser.parse_args()
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
        "speed": [speed_once(seed, rounds) for seed in seeds],
        "runs": [train_once(seed, budget) for seed in seeds],
    }
    if not args.quick:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
