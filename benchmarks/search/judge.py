"""What judges believe, by simulation: false keeps, true gains found, and where a session ends, at equal compute.

    python -m benchmarks.search.judge [--quick] [--grid] [--json FILE] [--plot FILE]

The judges are the real ones. Trials are drawn: effects are the differences to the incumbent that a real session of
forty recorded (results/session_forty.tsv), at three scales; noise is what real runs over five seeds showed
(results/optim_trainer.json), part of it shared by all that run on one seed. What was to the last digit the incumbent
then is so here. In one kind of world gains never run out; in the other what is left to gain shrinks with every keep,
from 40 sigma times the scale, about what that session gained in all.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent import judge
from agent.config import Task
from agent.judge import Confirm, Greedy, Judge, Standing
from agent.ledger import kept, read
from agent.noise import Noise, Spread, measured
from agent.values import Candidate, Proposal, Record, Run, RunAgain, Status, Trial, Verdict
from benchmarks.records import COLOURS, drawing, facts, headline, markdown, options, save
from sandbox.metrics import Metrics
from sandbox.process import Ending, Execution

RESULTS = Path(__file__).parents[1] / "results"
BUDGET, SEED, COMPUTE = "2e12flop", 42, 200  # runs of a session
EXECUTION = Execution(Ending.EXITED, 0, None, 1.0, 1.0, Path("run.log"), 0.0)
METRICS = Metrics(1.0, 1.0, 1.0, 1.0, None, 1.0, 1, 1.0, 1)
SCALES = {"as recorded": 1.0, "a quarter": 0.25, "a sixteenth": 1 / 16}
TO_GAIN = 40.0  # σ
PRIOR = 4 / 3  # what judges believe of the noise at first, over what it is: as wrong as from another machine
GRID = [(runs, level, worth) for runs in (1, 2, 3, 4) for level in (0.7, 0.8, 0.9) for worth in (0.0, 0.5, 1.0)]


def noise_recorded() -> tuple[float, float]:
    """σ over seeds and the share of its variance that all variants share on one seed, from a table of both."""
    rows: dict[str, dict[int, float]] = defaultdict(dict)
    for run in json.loads((RESULTS / "optim_trainer.json").read_text())["runs"]:
        rows[run["variant"]][run["seed"]] = run["val_bpb"]
    table = [[row[seed] for seed in sorted(row)] for row in rows.values()]
    left = [[value - statistics.fmean(row) for value in row] for row in table]
    kind = [statistics.fmean(column) for column in zip(*left, strict=True)]
    count, seeds = len(table), len(kind)
    total = sum(value**2 for row in left for value in row) / (count * (seeds - 1))
    own = sum((value - shared) ** 2 for row in left for value, shared in zip(row, kind, strict=True))
    return math.sqrt(total), 1 - own / ((count - 1) * (seeds - 1)) / total


def effects_recorded() -> list[float]:
    """Each trial's score less the incumbent's, of those days; both ran on one seed."""
    effects, before = [], None
    for record in read(RESULTS / "session_forty.tsv"):
        if record.val_bpb is not None and before is not None:
            effects.append(record.val_bpb - before)
        before = record.val_bpb if kept(record) else before
    return effects


SIGMA, SHARED = noise_recorded()


@dataclass
class World:
    """Candidates have a true score, less is better, and runs show it with noise. left: to gain, None: without end."""

    rng: random.Random
    effects: Sequence[float]
    to_gain: float | None
    seeds: dict[int, float] = field(default_factory=dict)
    runs: int = 0

    def run(self, truth: float, seed: int) -> Run:
        self.runs += 1
        if seed not in self.seeds:
            self.seeds[seed] = self.rng.gauss(0, SIGMA * math.sqrt(SHARED))
        value = truth + self.seeds[seed] + self.rng.gauss(0, SIGMA * math.sqrt(1 - SHARED))
        return Run(seed, BUDGET, EXECUTION, replace(METRICS, val_bpb=value))

    def fresh(self) -> tuple[int, ...]:
        return tuple(self.rng.getrandbits(31) for _ in range(judge.RERUNS))

    def effect(self, truth: float) -> float:
        drawn = self.rng.choice(self.effects)
        return drawn if drawn > 0 or self.to_gain is None else drawn * max(0.0, 1 + truth / self.to_gain)


@dataclass
class Incumbent:
    """Its row, its score on the first seed, its fresh ones, and what it showed there."""

    row: Record
    first: float
    seeds: tuple[int, ...]
    defence: dict[int, float | None] = field(default_factory=dict)


@dataclass
class Tally:
    """Of one session, scores in σ. large: proposed that are better by more than 2 σ, and how many of them were found.

    best: the true score of the last incumbent, less the baseline's. claimed: what its row says it is.
    """

    trials: int = 0
    kept: int = 0
    false: int = 0
    large: int = 0
    found: int = 0
    best: float = 0.0
    claimed: float = 0.0


def session(world: World, how: Judge) -> Tally:
    """Trials until COMPUTE runs are spent."""
    tally, truth = Tally(), 0.0
    paired = SIGMA * math.sqrt(2 * (1 - SHARED))
    before = noise = Noise(Spread(PRIOR * SIGMA, 8.0), Spread(PRIOR * paired, 8.0))
    pairs: list[list[float]] = []
    start = world.run(truth, SEED)
    now = Incumbent(_row(0, _value(start)), _value(start), world.fresh())
    all_of_them = [now]
    while world.runs < COMPUTE:
        tally.trials += 1
        effect = world.effect(truth)
        if effect == 0:  # the same computation: the same number
            world.runs += 1
            continue
        trial, verdict = _judged(world, how, now, truth, effect, noise, tally.trials)
        kept_it = verdict.status is Status.KEEP
        tally.large, tally.found = tally.large + (effect < -2 * SIGMA), tally.found + (kept_it and effect < -2 * SIGMA)
        if len(trial.runs) > 1:
            fresh = {run.seed: _value(run) for run in trial.runs[1:]}
            pairs.append([value - theirs for seed, value in fresh.items() if (theirs := now.defence[seed]) is not None])
            noise = measured(before, [list(filter(None, one.defence.values())) for one in all_of_them], pairs)
        if kept_it:
            tally.kept, tally.false, truth = tally.kept + 1, tally.false + (effect > 0), truth + effect
            value = verdict.finding.value if verdict.finding else _value(trial.runs[0])
            now = Incumbent(_row(tally.trials, value), _value(trial.runs[0]), world.fresh())
            all_of_them.append(now)
    tally.best, tally.claimed = truth / SIGMA, ((now.row.val_bpb or 0.0) - _value(start)) / SIGMA
    return tally


def _judged(
    world: World, how: Judge, now: Incumbent, truth: float, effect: float, noise: Noise, number: int
) -> tuple[Trial, Verdict]:
    trial = Trial(number, "", Candidate(Proposal((), ""), {}, "", "", ""), (world.run(truth + effect, SEED),))
    while isinstance(
        wanted := how.decide(trial, Standing(now.row, noise, now.seeds, now.first, now.defence)), RunAgain
    ):
        if wanted.incumbent:
            now.defence[wanted.seed] = _value(world.run(truth, wanted.seed))
        else:
            trial = replace(trial, runs=(*trial.runs, world.run(truth + effect, wanted.seed)))
    return trial, wanted


def _value(run: Run) -> float:
    assert run.metrics is not None, "every run here has a number"
    return run.metrics.val_bpb


def _row(number: int, value: float) -> Record:
    return Record(f"{number:07}", value, 0.1, "keep", "", trial=number, budget=BUDGET)


def sessions(how: Judge, scale: float, ends: bool, repeats: int) -> list[Tally]:
    """The n-th session of every judge begins on the same stream of luck."""
    effects, to_gain = [effect * scale for effect in effects_recorded()], TO_GAIN * SIGMA * scale if ends else None
    return [session(World(random.Random(f"{scale} {number}"), effects, to_gain), how) for number in range(repeats)]


def row(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Means over sessions, with the standard error of the last one."""
    large, bests = sum(tally.large for tally in tallies), [tally.best for tally in tallies]
    means = {
        name: statistics.fmean(getattr(tally, name) for tally in tallies)
        for name in ("trials", "kept", "false", "best", "claimed")
    }
    found = sum(tally.found for tally in tallies) / large if large else None
    error = statistics.stdev(bests) / math.sqrt(len(bests))
    return means | {"found": found, "large": large, "error": error, "quartiles": statistics.quantiles(bests, n=4)}


def judges(grid: bool) -> Iterator[tuple[str, Judge]]:
    """Greedy, and the other as it is; with `grid` at other settings, too."""
    task, as_it_is = Task(), (judge.RERUNS, judge.LEVEL, judge.WORTH)
    yield "greedy", Greedy(task)
    yield "confirm", Confirm(task)
    for runs, level, worth in GRID if grid else ():
        judge.RERUNS, judge.LEVEL, judge.WORTH = runs, level, worth
        yield f"confirm: {runs} seeds, level {level}, worth {worth}", Confirm(task)
    judge.RERUNS, judge.LEVEL, judge.WORTH = as_it_is


def looks(repeats: int) -> dict[str, float]:
    """How often a candidate that is no better, and got past the first run, is kept: with and without looking early, and
    with the noise known or as a session begins, from a prior that is right."""
    rates, early = {}, judge.EARLY
    for dof, known in ((1e6, "noise known"), (8.0, "prior only")):
        for level, name in ((early, "as it is"), (1 - 1e-12, "no early keep")):
            judge.EARLY = level
            rates[f"{known}, {name}"] = _kept_by_luck(random.Random("looks"), dof, repeats)
    judge.EARLY = early
    return rates


def _kept_by_luck(rng: random.Random, dof: float, repeats: int) -> float:
    noise = Noise(Spread(SIGMA, dof), Spread(SIGMA * math.sqrt(2 * (1 - SHARED)), dof))
    passed = kept_ones = 0
    for _ in range(repeats):
        world = World(rng, [0.0], None)
        start = _value(world.run(0.0, SEED))
        trial, verdict = _judged(
            world, Confirm(Task()), Incumbent(_row(0, start), start, world.fresh()), 0.0, 0.0, noise, 1
        )
        passed, kept_ones = passed + (len(trial.runs) > 1), kept_ones + (verdict.status is Status.KEEP)
    return kept_ones / passed


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "gains",
        "effects",
        "judge",
        "trials",
        "keeps",
        "false keeps",
        "gains > 2σ kept",
        "true best, σ",
        "claimed, σ",
    )
    return markdown(head, [_cells(one) for one in rows])


def _cells(one: Mapping[str, Any]) -> list[str]:
    found = "-" if one["found"] is None else f"{one['found']:.1%} of {one['large']}"
    numbers = [f"{one['trials']:.0f}", f"{one['kept']:.2f}", f"{one['false']:.3f}", found]
    return [
        one["gains"],
        one["effects"],
        one["judge"],
        *numbers,
        f"{one['best']:.2f} ± {one['error']:.2f}",
        f"{one['claimed']:.2f}",
    ]


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--grid", action="store_true", help="other settings of the judge, too")
    given = parser.parse_args()
    repeats = 40 if given.quick else 1000
    rows = [
        {"gains": "shrink" if ends else "never end", "effects": name, "judge": called}
        | row(sessions(how, scale, ends, repeats))
        for ends in (True, False)
        for name, scale in SCALES.items()
        for called, how in judges(given.grid)
    ]
    rates = looks(40 * repeats)
    result = facts(sigma=SIGMA, shared=SHARED, compute=COMPUTE, repeats=repeats, rows=rows, no_better_kept=rates)
    print(headline(result))
    print(
        f"σ {SIGMA:.6f}, {SHARED:.0%} of its square shared by a seed's runs; {COMPUTE} runs a session, n = {repeats}\n"
    )
    print(table(rows))
    print(
        f"\nNo better, past the first run, and kept: {'; '.join(f'{name}: {rate:.1%}' for name, rate in rates.items())}"
    )
    save(result, given.json)
    draw(rows, given.plot)


def draw(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    shown = [one for one in rows if one["judge"] in ("greedy", "confirm") and one["gains"] == "shrink"]
    with drawing(path, 1, 2, f"judges at {COMPUTE} runs a session, means") as axes:
        for axis, key, name in zip(
            axes.flat, ("false", "best"), ("false keeps a session", "true best, σ (lower is better)"), strict=True
        ):
            for colour, how in zip(COLOURS[1:], ("greedy", "confirm"), strict=False):
                mine = [one for one in shown if one["judge"] == how]
                places = [n + (0.2 if how == "confirm" else -0.2) for n in range(len(mine))]
                axis.bar(places, [one[key] for one in mine], 0.38, color=colour, label=how)
            axis.set_xticks(range(len(SCALES)), [*SCALES])
            axis.set_xlabel("effects")
            axis.set_ylabel(name)
            axis.legend(frameon=False)


if __name__ == "__main__":
    main()
