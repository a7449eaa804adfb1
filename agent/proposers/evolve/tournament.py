"""Who runs next, and who goes on: screen, front, promotion, survivors, trial. Pure.

    screen      all of a generation and the reference, a quarter of the budget, one seed of the generation's own
    front       who is dominated by nobody in (quality, speed, stability), the better score first; a quarter goes on
    promotion   those and the reference, half of the budget, on three seeds of the generation's own
    survivors   whose mean gain over the reference on these seeds has a lower bound above zero
    trial       the survivors, the best first, as any other proposal, until the session's judge keeps one

The seeds are new in each generation and the reference runs on all of them, so nobody lives on a lucky number for long
and all comparisons are of runs on one seed. Speed is another axis than quality, and rough: the clock is noisy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeAlias

from agent.noise import Spread
from agent.proposers.evolve.archive import BAD, Archive, Generation, Result, Stage, Wanted
from agent.values import Status

SHARES = {Stage.SCREEN: 0.25, Stage.PROMOTION: 0.5, Stage.TRIAL: 1.0}  # of the session's budget
SEEDS = 3  # of a promotion
LEVEL = 0.8  # of a survivor's lower bound, the judge's own
PROMOTED = 4  # one in so many of a generation, and 2 at least
SPEED_STEP, RISE_STEP = 0.05, 0.1  # what counts as the same: a share of tokens a second; nats

Point: TypeAlias = tuple[float, ...]  # more is better in each


def seeds(archive: Archive, number: int) -> tuple[int, tuple[int, ...]]:
    """Of a generation: the one to screen on, and those to promote on."""
    rng = random.Random(f"{archive.seed} seeds of generation {number}")
    return rng.getrandbits(31), tuple(rng.getrandbits(31) for _ in range(SEEDS))


def runs(archive: Archive, generation: Generation) -> Iterator[Wanted]:
    """All that are called for as far as it is decided, in their order, those that are done included."""
    screen, promotion = seeds(archive, generation.number)

    def run(id: str, stage: Stage, seed: int | None) -> Wanted:
        return Wanted(id, generation.number, stage, seed, generation.base)

    for id in dict.fromkeys((generation.reference, *generation.members)):
        yield run(id, Stage.SCREEN, screen)
    promoted = generation.promoted or ()
    for seed in promotion if promoted else ():
        for id in dict.fromkeys((generation.reference, *promoted)):
            if id == generation.reference or not _failed(archive, generation, id, seed):
                yield run(id, Stage.PROMOTION, seed)
    for id in generation.survivors or ():
        yield run(id, Stage.TRIAL, None)
        result = archive.result(run(id, Stage.TRIAL, None))
        if result is not None and result.status == Status.KEEP:
            return


def next_run(archive: Archive, busy: Collection[Wanted] = ()) -> Wanted | None:
    """None when the last generation has nothing left to run. busy: runs to leave out, for they are in flight."""
    left = runs(archive, archive.generations[-1]) if archive.generations else ()
    return next((run for run in left if archive.result(run) is None and run not in busy), None)


def decided(archive: Archive, spread: Spread) -> Archive:
    """With whatever the results allow to be decided of the last generation. spread: of a difference on one seed,
    before any of this generation's is known."""
    if not archive.generations or next_run(archive) is not None:
        return archive
    generation = archive.generations[-1]
    if generation.promoted is None:
        return archive.revised(replace(generation, promoted=promoted(archive, generation)))
    if generation.survivors is None:
        return archive.revised(replace(generation, survivors=survivors(archive, generation, spread)))
    return archive


def promoted(archive: Archive, generation: Generation) -> tuple[str, ...]:
    """The first ids of the front; the next fronts fill up. What is bad on purpose, and what left no score, is not."""
    points = {id: _point(archive, generation, id) for id in generation.members if id != generation.reference}
    rated = {id: point for id, point in points.items() if point and archive.individuals[id].operator != BAD}
    rank = ranks(list(rated.values()))
    order = sorted(zip(rank, rated, strict=True), key=lambda pair: (pair[0], -rated[pair[1]][0], pair[1]))
    return tuple(id for _, id in order)[: max(2, math.ceil(len(rated) / PROMOTED))]


def survivors(archive: Archive, generation: Generation, spread: Spread) -> tuple[str, ...]:
    """Of the promoted, whose mean gain is above zero by Student's t; the noise of all of them is pooled. Best first."""
    gains = {id: archive.gains(generation, id) for id in generation.promoted or () if id != generation.reference}
    pooled = spread.pooled(gains.values())
    proven = [id for id, own in gains.items() if len(own) >= SEEDS and fmean(own) > pooled.error(len(own), LEVEL)]
    return tuple(sorted((id for id in proven if not tried(archive, id)), key=lambda id: -fmean(gains[id])))


def fitness(archive: Archive, generation: Generation) -> dict[str, float]:
    """Mean gain in the promotion, of those that may have children: who was promoted and ran, and the reference."""
    gains = {id: archive.gains(generation, id) for id in generation.promoted or ()}
    return {generation.reference: 0.0} | {id: fmean(own) for id, own in gains.items() if len(own) >= SEEDS}


def tried(archive: Archive, id: str) -> bool:
    """Whether it was up for trial before, in whatever generation: the judge has spoken."""
    return any(one.run.id == id and one.run.stage is Stage.TRIAL for one in archive.results)


def ranks(points: Sequence[Point]) -> list[int]:
    """0 for those that no other dominates, 1 for those that only they dominate, and so on."""
    rank: dict[int, int] = {}
    level, left = 0, set(range(len(points)))
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        rank |= dict.fromkeys(front, level)
        left, level = left - front, level + 1
    return [rank[i] for i in range(len(points))]


def dominates(one: Point, other: Point) -> bool:
    """Nowhere worse, and somewhere better."""
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _point(archive: Archive, generation: Generation, id: str) -> Point | None:
    """(quality, speed, stability), each more for better; None without a score."""
    ours, theirs = archive.screen(generation, id), archive.screen(generation, generation.reference)
    if ours is None or ours.score is None:
        return None
    return archive.gain(ours.score, 0.0), _speed(ours, theirs), -round((ours.rise or 0.0) / RISE_STEP)


def _speed(ours: Result, theirs: Result | None) -> float:
    """Of the reference's, in whole SPEED_STEPs; as fast as it where that is not known."""
    before = theirs.speed if theirs else None
    ratio = ours.speed / before if ours.speed and before else 1.0
    return round(ratio / SPEED_STEP) * SPEED_STEP


def _failed(archive: Archive, generation: Generation, id: str, seed: int) -> bool:
    """Whether it left no score on another seed already: then it need not run on this one."""
    found = archive.found(generation, Stage.PROMOTION, id)
    return any(one.score is None and one.run.seed != seed for one in found)
