"""Searches over the recorded trials of train.py: how far each has come after so many trials, twenty times over.

    python -m benchmarks.search.compare [--quick] [--repeats 20] [--json FILE] [--plot FILE]

random, tpe and cmaes are plain Optuna over all knobs; the rows with a + are told train.py's own values first, as one of
their trials. knobs, centaur (CMA-ES alone) and portfolio are overnight's own, asked and told as in a session under a
greedy judge, without a model and without a pruner; train.py as it is is their first trial. portfolio is what a session
without a model has, knobs and evolve, whose turns the bandit gives out; evolve turns no knobs and the surrogate knows
of nothing else, so that its trials are counted and gain nothing. What a trial comes to is said by the surrogate: a
score with the noise of its seed, the same for the same point, or a failure. What is compared is the score without noise
of what a search holds for best. The repeats are paired: the same seeds of noise and failure for all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from agent import patch
from agent.bandit import turn
from agent.constants import find
from agent.proposers.centaur import Centaur
from agent.proposers.knobs import Knobs
from agent.values import History, Proposer, Record, Status
from benchmarks.records import COLOURS, drawing, facts, headline, markdown, options, save
from benchmarks.search.space import BUDGET, LOST, Point, Space, default_space, sampler
from benchmarks.search.surrogate import FLOOR, Surrogate
from benchmarks.search.trials import load, of_constants

TRIALS, REPEATS, EARLY = 100, 20, 70
PLAIN = ("random", "tpe", "cmaes", "tpe+", "cmaes+")
OURS = {"knobs": ("knobs",), "centaur": ("centaur",), "portfolio": ("knobs", "evolve")}
RESAMPLED = 2000  # bootstrap draws of a paired difference


@dataclass(frozen=True)
class World:
    """One repeat: what trials come to in it."""

    surrogate: Surrogate
    repeat: int

    def truth(self, point: Point) -> float:
        return self.surrogate.score(point)

    def run(self, point: Point) -> float | None:
        """A score as a session would see it, None for a failure; the same whenever it is asked."""
        luck = Random(f"{self.repeat} {sorted(point.items())}")
        if luck.random() < self.surrogate.fails(point):
            return None
        return FLOOR + (self.truth(point) - FLOOR) * float(np.exp(luck.gauss(0.0, self.surrogate.noise)))


def plain(name: str, space: Space, world: World, trials: int) -> Iterator[float]:
    """The true score of the best so far, after each trial."""
    study = optuna.create_study(sampler=sampler(name.removesuffix("+"), world.repeat))
    if name.endswith("+"):
        study.enqueue_trial(space.params(space.default))
    best, held = LOST, LOST
    for _ in range(trials):
        trial = study.ask(space.distributions)
        point = space.point(trial.params)
        value = world.run(point)
        study.tell(trial, LOST if value is None else value)
        if value is not None and value < best:
            best, held = value, world.truth(point)
        yield held


def ours(names: Sequence[str], space: Space, world: World, trials: int) -> Iterator[float]:
    """The same for proposers of overnight; which of several is asked says the bandit."""
    with tempfile.TemporaryDirectory() as state:
        made = {name: _proposer(name, Path(state) / name, world.repeat) for name in names if name != "evolve"}
        source, records = space.source, [_row(0, world.run(space.default), "keep", "")]
        incumbent, held = records[0], world.truth(space.default)
        yield held
        for number in range(1, trials):
            if (name := turn(names, records, world.repeat)) not in made:
                records.append(_row(number, incumbent.val_bpb, Status.DISCARD, name))
                yield held
                continue
            proposer = made[name]
            history = History(tuple(records), incumbent, {"train.py": source}, device="cpu")
            proposal = proposer.ask(history, ())
            tried = patch.apply({"train.py": source}, proposal.edits, ["train.py"])["train.py"]
            value = world.run(point_of(space, tried))
            kept = value is not None and value < (incumbent.val_bpb or LOST)
            status = Status.CRASH if value is None else Status.KEEP if kept else Status.DISCARD
            records.append(_row(number, value, status, proposer.name))
            proposer.tell(proposal, records[-1])
            if kept:
                source, incumbent, held = tried, records[-1], world.truth(point_of(space, tried))
            yield held


def point_of(space: Space, source: str) -> Point:
    """The knobs of a train.py."""
    values = {constant.name: constant.value for constant in find(source, "cpu")}
    return {axis.name: values[axis.name] for axis in space.axes}


def _proposer(name: str, state: Path, seed: int) -> Proposer:
    return Knobs(state, "cpu", seed=seed) if name == "knobs" else Centaur(state, "cpu", seed=seed)


def _row(number: int, value: float | None, status: str, proposer: str) -> Record:
    return Record(f"{number:07x}", value, 1.0, status, "", number, proposer=proposer, budget=BUDGET, total_seconds=60.0)


def curves(repeats: int, trials: int, say: Callable[[str], None]) -> dict[str, NDArray[np.float64]]:
    """Search → (repeats, trials) true scores of the best so far."""
    space = default_space()
    surrogate = Surrogate(space, of_constants(load()))
    found: dict[str, list[list[float]]] = {name: [] for name in (*PLAIN, *OURS)}
    for repeat in range(repeats):
        world = World(surrogate, repeat)
        for name in PLAIN:
            found[name].append(list(plain(name, space, world, trials)))
        for name, names in OURS.items():
            found[name].append(list(ours(names, space, world, trials)))
        say(f"repeat {repeat}: " + "  ".join(f"{name} {rows[-1][-1]:.4f}" for name, rows in found.items()))
    return {name: np.array(rows) for name, rows in found.items()}


def summary(found: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """For each search: quartiles at the end, trials until TPE's median there, and the paired difference to TPE."""
    tpe = found["tpe"]
    goal = float(np.median(tpe[:, -1]))
    rows = {}
    for name, values in found.items():
        reached = np.flatnonzero(np.median(values, axis=0) <= goal)
        low, high = _interval(values[:, -1] - tpe[:, -1])
        rows[name] = {
            "quartiles": [round(float(value), 4) for value in np.percentile(values[:, -1], (25, 50, 75))],
            "reaches_tpe_after": int(reached[0]) + 1 if len(reached) else None,
            "against_tpe": [round(float(np.median(values[:, -1] - tpe[:, -1])), 4), round(low, 4), round(high, 4)],
        }
    return {"goal": round(goal, 4), "searches": rows}


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % for the median of paired differences, by bootstrap."""
    drawn = np.random.default_rng(0).choice(differences, (RESAMPLED, len(differences)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def plot(found: Mapping[str, NDArray[np.float64]], path: Path | None) -> None:
    with drawing(path, 2, 1, "Best so far: median and quartiles") as axes:
        for colour, (name, values) in zip(COLOURS, found.items(), strict=True):
            place = axes[0 if name in PLAIN else 1, 0]
            low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
            steps = np.arange(1, values.shape[1] + 1)
            place.plot(steps, middle, color=colour, label=name)
            place.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        lowest = min(float(np.percentile(values, 25, axis=0).min()) for values in found.values())
        for place in axes.flat:
            place.set(xlabel="trials", ylabel="val_bpb", ylim=(lowest - 0.03, 2.1))
            place.legend()


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    repeats, trials = (3, 30) if args.quick else (args.repeats, TRIALS)
    found = curves(repeats, trials, lambda text: print(text, flush=True))
    told = summary(found)
    best = {name: np.round(np.percentile(rows, (25, 50, 75), axis=0), 4).tolist() for name, rows in found.items()}
    result = facts(repeats=repeats, trials=trials, **told, curves=best)
    save(result, args.json)
    plot(found, args.plot)
    print(headline(result))
    head = ["search", "best after all, quartiles", "trials to TPE's median", "against TPE, median (95 %)"]
    lines = [
        [
            name,
            " / ".join(f"{value:.4f}" for value in row["quartiles"]),
            str(row["reaches_tpe_after"] or "not reached"),
            "{:+.4f} ({:+.4f} to {:+.4f})".format(*row["against_tpe"]),
        ]
        for name, row in told["searches"].items()
    ]
    print(markdown(head, lines))
    mine = told["searches"]["portfolio"]
    met = (mine["reaches_tpe_after"] or trials + 1) <= EARLY and mine["against_tpe"][0] <= 0
    print(
        f"\nportfolio reaches TPE's median within {EARLY} trials and is not worse at {trials}: {'yes' if met else 'no'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
