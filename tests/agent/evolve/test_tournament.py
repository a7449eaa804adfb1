import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.noise import Spread
from agent.proposers.evolve.archive import BAD, INCUMBENT, Archive, Generation, Individual, Preset, Result, Stage
from agent.proposers.evolve.genome import Policy
from agent.proposers.evolve.tournament import (
    SEEDS,
    decided,
    dominates,
    fitness,
    next_run,
    promoted,
    ranks,
    survivors,
)

TIGHT = Spread(0.001, 8.0)
POINTS = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), max_size=12)


def person(steps: int, operator: str = "ns_steps") -> Individual:
    return Individual(Policy.of({"ns_steps": steps}), operator, 0)


REFERENCE = person(5, INCUMBENT)
OTHERS = [person(steps) for steps in (1, 2, 3, 4, 6, 7)]


def begun(members: list[Individual] = OTHERS, direction: str = "min") -> Archive:
    archive = Archive(Preset("small", 1, len(members)), 7, direction).joined([REFERENCE, *members])
    return archive.begun(Generation(0, "base", REFERENCE.id, tuple(one.id for one in members)))


def ran(archive: Archive, score: dict[str, float | None], speed: dict[str, float] | None = None) -> Archive:
    """All that is wanted now, and nothing that follows from it. score: by id; seeds shift all alike."""
    while (run := next_run(archive)) is not None:
        value = score[run.id]
        shift = (run.seed or 0) % 1000 / 1000
        value = None if value is None else round(value + shift, 6)
        archive = archive.told(
            Result(run, 1, "crash" if value is None else "discard", value, (speed or {}).get(run.id))
        )
    return archive


@given(POINTS)
def test_ranks_are_those_of_the_definition(points: list[tuple[float, ...]]) -> None:
    rank = ranks(points)
    for i, one in enumerate(points):
        above = [rank[j] for j, other in enumerate(points) if dominates(other, one)]
        assert rank[i] == max(above, default=-1) + 1


def test_domination() -> None:
    assert dominates((1, 2, 0), (1, 1, 0))
    assert not dominates((1, 2, 0), (1, 2, 0))
    assert not dominates((1, 2, 0), (2, 1, 0))


def scores(*values: float | None) -> dict[str, float | None]:
    return dict(zip((one.id for one in [REFERENCE, *OTHERS]), values, strict=False))


def test_the_best_go_on_and_the_bad_ones_never() -> None:
    members = [*OTHERS[:3], replace(OTHERS[3], operator=BAD)]
    archive = ran(begun(members), scores(1.0, 1.3, 0.9, 0.95, 0.5))
    assert promoted(archive, archive.generations[0]) == (OTHERS[1].id, OTHERS[2].id)


def test_more_is_better_where_the_task_says_so() -> None:
    archive = ran(begun(OTHERS[:3], "max"), scores(1.0, 1.3, 0.9, 0.95))
    assert promoted(archive, archive.generations[0]) == (OTHERS[0].id, OTHERS[2].id)


def test_speed_is_an_axis_of_its_own_and_small_differences_are_none() -> None:
    score = scores(1.0, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95)
    level = {one.id: 100.0 for one in (REFERENCE, *OTHERS)}
    for fast, expected in ((102.0, OTHERS[1]), (150.0, OTHERS[5])):
        archive = ran(begun(), score, level | {OTHERS[5].id: fast})
        assert promoted(archive, archive.generations[0]) == (OTHERS[0].id, expected.id)


def test_a_crash_has_no_place() -> None:
    archive = ran(begun(OTHERS[:2]), scores(1.0, None, None))
    assert promoted(archive, archive.generations[0]) == ()
    done = decided(decided(archive, TIGHT), TIGHT)
    assert done.generations[0].survivors == ()
    assert next_run(done) is None


def test_survivors_gain_on_the_same_seeds_by_more_than_noise() -> None:
    archive = decided(ran(begun(OTHERS[:3]), scores(1.0, 0.98, 0.9999, 1.1)), TIGHT)
    assert archive.generations[0].promoted == (OTHERS[0].id, OTHERS[1].id)
    archive = ran(archive, scores(1.0, 0.98, 0.9999, 1.1))
    runs = [one.run for one in archive.results if one.run.stage is Stage.PROMOTION]
    assert len(runs) == 3 * SEEDS
    assert {run.seed for run in runs if run.id == REFERENCE.id} == {run.seed for run in runs if run.id == OTHERS[0].id}
    assert survivors(archive, archive.generations[0], TIGHT) == (OTHERS[0].id,)
    assert survivors(archive, archive.generations[0], Spread(1.0, 8.0)) == ()
    assert fitness(archive, archive.generations[0]) == pytest.approx(
        {REFERENCE.id: 0.0, OTHERS[0].id: 0.02, OTHERS[1].id: 0.0001}
    )


def test_who_crashes_in_a_promotion_is_not_run_on_the_other_seeds() -> None:
    archive = decided(ran(begun(OTHERS[:2]), scores(1.0, 0.9, 0.8)), TIGHT)
    archive = ran(archive, scores(1.0, 0.9, None))
    assert len(archive.found(archive.generations[0], Stage.PROMOTION, OTHERS[1].id)) == 1
    assert survivors(archive, archive.generations[0], TIGHT) == (OTHERS[0].id,)
    assert OTHERS[1].id not in fitness(archive, archive.generations[0])


def test_survivors_are_tried_the_best_first_until_one_is_kept() -> None:
    score = scores(1.0, 0.9, 0.8)
    archive = decided(ran(decided(ran(begun(OTHERS[:2]), score), TIGHT), score), TIGHT)
    first = next_run(archive)
    assert first is not None
    assert (first.id, first.stage, first.seed) == (OTHERS[1].id, Stage.TRIAL, None)
    assert next_run(archive.told(Result(first, 9, "keep", 0.8))) is None
    second = next_run(archive.told(Result(first, 9, "discard", 0.8)))
    assert second is not None
    assert second.id == OTHERS[0].id


def test_beside_other_code_a_run_does_not_count() -> None:
    archive = ran(begun(OTHERS[:2]), scores(1.0, 0.9, 0.8))
    moved = archive.revised(replace(archive.generations[0], base="other"))
    run = next_run(moved)
    assert run is not None
    assert (run.id, run.base) == (REFERENCE.id, "other")
    assert moved.screened_gain(moved.generations[0], OTHERS[0].id) is None
    assert math.isclose(archive.screened_gain(archive.generations[0], OTHERS[0].id) or 0, 0.1)
