"""What a change of train.py costs: its steps and another file's, in turn in one process.

    python -m benchmarks.train_against OTHER.py [--rounds N] [--steps N] [--json FILE]

Both files see the same random tokens, and whoever is built and timed first in one round comes second in the next. Also
says whether both models end with the same weights, to the bit: then the change is one of speed alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch

import prepare
import train
from benchmarks.train_bars import LENGTH, VOCAB, Noise

PARTS = ("gradients", "update", "whole step")
TURNS = 3  # that each file has in a round


def load(path: Path) -> ModuleType:
    """Another train.py, under a name of its own."""
    spec = spec_from_file_location("train_other", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"expected a Python file to compare train.py with, found {path}")
    sys.modules["train_other"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Side:
    """One of the two files in training."""

    def __init__(self, program: ModuleType) -> None:
        torch.manual_seed(1)
        self.program, self.feed = program, Noise()
        self.model = program.build_model(program.configure(VOCAB, LENGTH))
        self.optimizers = program.make_optimizers(program.param_groups(self.model))

    def turn(self, seed: int, steps: int) -> list[float]:
        """Seconds of each of PARTS, in the mean of so many steps."""
        torch.manual_seed(seed)
        pairs = [(prepare.stopwatch(self._gradients), prepare.stopwatch(self._update)) for _ in range(steps)]
        gradients, update = (statistics.fmean(part) for part in zip(*pairs, strict=True))
        return [gradients, update, gradients + update]

    def _gradients(self) -> None:
        self.program.accumulate(self.model, self.feed, LENGTH)

    def _update(self) -> None:
        self.program.set_schedules(self.optimizers, self.feed.progress)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()


def compare(program: ModuleType, rounds: int, steps: int) -> tuple[dict[str, list[float]], bool]:
    """Seconds here over seconds there, of each of PARTS, a round each; and whether the weights were always the same.

    Both are made anew for each round: where their tensors lie is worth some per cent for as long as they live. The
    first turn of each, and the first round, are there to warm up.
    """
    ratios: dict[str, list[float]] = {part: [] for part in PARTS}
    equal = True
    for number in range(rounds + 1):
        sides = [Side(one) for one in ((train, program) if number % 2 else (program, train))]
        turns = [[side.turn(number + turn, steps) for side in sides] for turn in range(1 + TURNS)]
        seconds = {
            side.program: medians(times[1:]) for side, times in zip(sides, zip(*turns, strict=True), strict=True)
        }
        for part, here, there in zip(PARTS, seconds[train], seconds[program], strict=True):
            ratios[part].append(here / there)
        equal = equal and same(*sides)
    return {part: values[1:] for part, values in ratios.items()}, equal


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    """Of each of PARTS."""
    return [statistics.median(part) for part in zip(*times, strict=True)]


def same(here: Side, other: Side) -> bool:
    ours, theirs = here.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2, help="in a row, before it is the other's turn")
    parser.add_argument("--json", type=Path, help="where raw results go")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error(f"expected at least two rounds, for their spread, found {given.rounds}")
    prepare.keep_memory()
    ratios, equal = compare(load(given.other), given.rounds, given.steps)
    print(f"| part of a step | train.py's time over {given.other.name}'s | quartiles | n |\n|---|---|---|---|")
    for part, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"| {part} | {median:.3f} | {low:.3f} – {high:.3f} | {len(values)} |")
    print(f"weights at the end of each round: {'the same to the bit' if equal else 'different'}")
    if given.json:
        facts = {"threads": torch.get_num_threads(), "steps": given.steps, "same_weights": equal}
        given.json.write_text(json.dumps(facts | {"ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
