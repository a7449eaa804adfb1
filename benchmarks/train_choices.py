"""What the choices that make train.py fast on a CPU are worth: tokens a second against train.py as it is.

    python -m benchmarks.train_choices [--rounds N] [--json FILE]

Every choice is undone alone, and timed in turn with train.py as it is, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

import prepare
import train
from benchmarks.train_bars import trainer

STEPS = 2  # in a row, before it is the other's turn
PLAIN: dict[str, dict[str, Any]] = {
    "one thread": {},
    "TOTAL_BATCH_SIZE 2048": {"TOTAL_BATCH_SIZE": 2048},
    "TOTAL_BATCH_SIZE 16384": {"TOTAL_BATCH_SIZE": 16384},
    "DEVICE_BATCH_SIZE 8": {"DEVICE_BATCH_SIZE": 8},
    "DEVICE_BATCH_SIZE 32, TOTAL_BATCH_SIZE 8192": {"DEVICE_BATCH_SIZE": 32, "TOTAL_BATCH_SIZE": 8192},
    "bfloat16": {"DTYPE": "bfloat16"},
    "torch's RMS norm": {"norm": lambda x: F.rms_norm(x, (x.size(-1),))},
    "torch's cross entropy": {
        "CappedLoss": SimpleNamespace(apply=lambda raw, targets, cap: F.cross_entropy(train.capped(raw, cap), targets))
    },
}
PLAIN["torch's norm and cross entropy"] = PLAIN["torch's RMS norm"] | PLAIN["torch's cross entropy"]


@contextmanager
def undone(choice: str) -> Iterator[None]:
    """train.py without one of its choices."""
    changes = PLAIN[choice]
    before, threads = {name: vars(train)[name] for name in changes}, torch.get_num_threads()
    vars(train).update(changes)
    torch.set_num_threads(1 if choice == "one thread" else threads)
    try:
        yield
    finally:
        vars(train).update(before)
        torch.set_num_threads(threads)


def speed(step: Callable[[], None]) -> float:
    """Tokens a second."""
    rows, micro_steps = train.split_batch(256)
    return STEPS * rows * micro_steps * 256 / prepare.stopwatch(lambda: [step() for _ in range(STEPS)])


def compare(choice: str, rounds: int) -> list[float]:
    """Speed without the choice over speed with it, a round each."""
    step = trainer(1)[0]
    with undone(choice):
        other = trainer(1)[0]
    ratios = []
    for _ in range(rounds + 1):
        chosen = speed(step)
        with undone(choice):
            ratios.append(speed(other) / chosen)
    return ratios[1:]  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="where raw results go")
    given = parser.parse_args()
    prepare.keep_memory()
    found = {choice: compare(choice, given.rounds) for choice in PLAIN}
    print("| without the choice | tokens a second, against train.py as it is | spread | n |\n|---|---|---|---|")
    for choice, ratios in found.items():
        print(f"| {choice} | {statistics.median(ratios):.2f} | {min(ratios):.2f} – {max(ratios):.2f} | {len(ratios)} |")
    if given.json:
        given.json.write_text(json.dumps({"threads": torch.get_num_threads(), "ratios": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
