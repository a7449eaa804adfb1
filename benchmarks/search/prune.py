"""What ending hopeless runs early would have saved, and how often it would have been wrong, on recorded curves.

    python -m benchmarks.search.prune [--quick] [--repeats 20] [--json FILE]

The recorded trials come in a random order. Each is compared with train.py as it is, by the pruner of a session: it
knows those before it that ran to their end. "Beside an earlier session" it knows one half of the trials of that way,
run to their end, and all of the other ways, when the other half begins. Its answer is right or wrong by how the trial
really ended. Trials an hour by measured seconds, smoke and scoring included (a run that is ended is not scored), and by
training alone: at a budget as small as this one a third to a half of a trial is not training, at a real one little is.

Three ways of proposing: constants drawn anywhere (as a search of all of them does at first), one to three of them
turned, and edits of code as a model would send them, some of them with constants turned as well.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.judge import WORTH
from agent.kinds import Kind, kind_of
from agent.proposers.point import applied, edits_of
from agent.pruner import RUN_ON, Curve, Pair, Past, Pruner
from benchmarks.records import facts, headline, markdown, options, save
from benchmarks.search.collect import candidate_of, named_edit
from benchmarks.search.space import Space, default_space
from benchmarks.search.trials import Row, load

REPEATS = 20
SIGMA = 0.008  # bits per byte: what a judge's prior gives for a pair on a CPU, at the score of train.py as it is
WAYS = {"drawn anywhere": ("random", "tpe", "cmaes"), "one to three turned": ("near",), "like a model's": ("model",)}


@dataclass(frozen=True)
class Trial:
    """smoke, score: seconds before and after training."""

    kind: Kind
    pair: Pair
    behind: float
    train: float
    rest: float
    score: float


@dataclass
class Count:
    """Of one order of the trials. seconds: with the pruner, and the whole without; the same of training alone."""

    ended: int = 0
    wrong: int = 0
    winners: int = 0
    trials: int = 0
    shares: float = 0.0
    seconds: float = 0.0
    whole: float = 0.0
    training: float = 0.0
    all_training: float = 0.0


def trials(space: Space, rows: Sequence[Row], sources: Sequence[str]) -> list[Trial]:
    """Of those sources that left a score, beside the run that is closest to train.py as it is."""
    plain = next(row for row in rows if row.source == "default" and row.val_bpb is not None)
    rival, score = Curve(plain.progress, plain.loss), plain.val_bpb or 0.0
    return [
        Trial(
            _kind(space, row),
            Pair(Curve(row.progress, row.loss), rival, score),
            (row.val_bpb or 0.0) - score,
            row.train_seconds or 0.0,
            *_around(row),
        )
        for row in rows
        if row.source in sources and row.val_bpb is not None
    ]


def _around(row: Row) -> tuple[float, float]:
    """Seconds before training, and those of scoring: both a half of what is not training."""
    rest = max(0.0, row.seconds - (row.train_seconds or 0.0))
    return rest / 2, rest / 2


def _kind(space: Space, row: Row) -> Kind:
    before = {"train.py": space.source}
    if not row.change:
        edits = edits_of("train.py", space.source, "cpu", row.point)
        return kind_of(before, {"train.py": applied("train.py", space.source, edits)}, "hyperparameter", "cpu")
    category = named_edit(row.change).category
    return kind_of(before, candidate_of(space, row.point, row.change).sources, category, "cpu")


def session(order: Sequence[Trial], before: Sequence[Trial], rng: random.Random) -> Count:
    """Trials in that order. before: of earlier sessions, run to their end."""
    count, past = Count(), [(one.kind, Past(one.pair, one.behind)) for one in before]
    for one in order:
        known = [each for kind, each in past if one.kind.learns_from(kind)]
        found = Pruner(one.pair.incumbent, one.pair.score, known, SIGMA, WORTH * SIGMA).hopeless(one.pair.run)
        spared = rng.random() < RUN_ON
        count.trials, count.winners = count.trials + 1, count.winners + (one.behind < 0)
        count.whole, count.all_training = count.whole + one.train + one.rest + one.score, count.all_training + one.train
        if found is None or spared:
            count.seconds, count.training = count.seconds + one.train + one.rest + one.score, count.training + one.train
            past.append((one.kind, Past(one.pair, one.behind, 1 / RUN_ON if found else 1.0)))
            continue
        count.ended, count.wrong = count.ended + 1, count.wrong + (one.behind < 0)
        count.shares += found.share
        count.seconds += one.rest + found.share * one.train
        count.training += found.share * one.train
    return count


def measure(rows: Sequence[Row], repeats: int) -> dict[str, dict[str, Any]]:
    space, result = default_space(), {}
    for way, sources in WAYS.items():
        own = trials(space, rows, sources)
        others = trials(space, rows, [name for names in WAYS.values() for name in names if name not in sources])
        for earlier in (False, True):
            counts = []
            for repeat in range(repeats):
                rng = random.Random(repeat)
                order = rng.sample(own, len(own))
                half = len(own) // 2 if earlier else 0
                counts.append(session(order[half:], [*others, *order[:half]] if earlier else [], rng))
            name = f"{way}, {'beside an earlier session' if earlier else 'first session'}"
            result[name] = _summary(counts)
    return result


def _summary(counts: Sequence[Count]) -> dict[str, Any]:
    speeds = [[one.whole / one.seconds for one in counts], [one.all_training / one.training for one in counts]]
    ended = sum(one.ended for one in counts)
    speed, training = ([round(value, 3) for value in statistics.quantiles(values, n=4)] for values in speeds)
    return {
        "trials": counts[0].trials,
        "winners": round(statistics.fmean(one.winners for one in counts), 1),
        "ended": round(ended / sum(one.trials for one in counts), 4),
        "ended_at": round(sum(one.shares for one in counts) / ended, 3) if ended else None,
        "winners_ended": round(sum(one.wrong for one in counts) / max(1, sum(one.winners for one in counts)), 4),
        "wrong_of_ended": round(sum(one.wrong for one in counts) / ended, 4) if ended else None,
        "speed": speed,
        "speed_of_training": training,
    }


def table(result: Mapping[str, Mapping[str, Any]]) -> str:
    head = [
        "proposals",
        "trials",
        "ended",
        "at",
        "winners ended",
        "of those ended, winners",
        "trials an hour, quartiles",
        "by training alone",
    ]
    rows = []
    for name, row in result.items():
        shown = [name, str(row["trials"]), f"{row['ended']:.0%}", "-", f"{row['winners_ended']:.1%}", "-"]
        if row["ended_at"] is not None:
            shown[3], shown[5] = f"{row['ended_at']:.0%}", f"{row['wrong_of_ended']:.1%}"
        speeds = [" / ".join(f"{value:.2f}" for value in row[key]) for key in ("speed", "speed_of_training")]
        rows.append([*shown, *speeds])
    return markdown(head, rows)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args()
    result = facts(ways=measure(load(), 5 if args.quick else args.repeats))
    save(result, args.json)
    print(headline(result))
    print(table(result["ways"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
