"""The response surface: what it learns from trials, where it goes, and what it does with those that left no score."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from agent.constants import find
from agent.proposers.axis import Axis
from agent.proposers.surface import CANDIDATES, NOISE, WORST, Surface, candidates, coefficients, features, suggested

SOURCE = 'LR = 0.1  # range: 0.001..10.0 log\nDEPTH = 4  # range: 1..8\nKIND = "a"  # range: a|b|c\n'
BEST = np.array([0.8, 0.3, 0.5, 0.1])


def axes() -> list[Axis]:
    return [Axis(constant, constant.range) for constant in find(SOURCE, "cpu") if constant.range is not None]


def bowl(points: np.ndarray) -> np.ndarray:
    return ((points - BEST) ** 2).sum(axis=-1)


def test_features_are_lines_and_parabolas_of_one_size() -> None:
    grid = np.linspace(0, 1, 10001)[:, None]
    found = features(grid)
    assert found.shape == (10001, 2)
    assert found.mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert 0.5 < found.std(axis=0)[1] / found.std(axis=0)[0] < 1


def test_many_trials_tell_the_coefficients_and_none_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0.2, -0.1, 0.05, 0.3])
    inputs = features(rng.random((400, 2)))
    losses = inputs @ truth + NOISE * rng.standard_normal(400)
    drawn = np.array([coefficients(inputs, losses, rng) for _ in range(200)])
    assert drawn.mean(axis=0) == pytest.approx(truth, abs=0.03)
    assert drawn.std(axis=0).max() < 0.03
    blank = np.array([coefficients(np.zeros((0, 4)), np.zeros(0), rng) for _ in range(400)])
    assert blank.std() == pytest.approx(0.3, rel=0.1)


def test_candidates_move_one_to_all_coordinates() -> None:
    now = np.array([0.0, 0.5, 1.0, 0.3, 0.7])
    found = candidates(now, np.random.default_rng(0))
    assert found.shape == (CANDIDATES, 5)
    assert found.min() >= 0
    assert found.max() <= 1
    moved = (found != now).sum(axis=1)
    assert set(moved) >= {1, 2, 3, 4, 5}
    inner = found[:, [1, 3, 4]] - now[[1, 3, 4]]
    assert 0.3 < (np.abs(inner[inner != 0]) < 0.2).mean() < 0.95, "small steps, and others"


def test_it_goes_down_a_bowl() -> None:
    """From a corner, told the losses of what it proposes, to within a tenth of the way."""
    ends = []
    for seed in range(5):
        rng, now = np.random.default_rng(seed), np.array([0.1, 0.9, 0.9, 0.9])
        start = bowl(now)
        points = [now]
        for _ in range(40):
            told = np.array([bowl(point) for point in points])
            now = points[int(told.argmin())]
            points.append(suggested(np.array(points), told - told.min(), now, rng))
        ends.append(min(bowl(point) for point in points) / start)
    assert max(ends) < 0.1, ends


def test_how_bad_a_failure_is_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    points, losses = rng.random((30, 4)), np.append(np.zeros(29), 1e6)
    one = suggested(points, losses, BEST, np.random.default_rng(1))
    other = suggested(points, np.append(np.zeros(29), WORST), BEST, np.random.default_rng(1))
    assert np.array_equal(one, other)


def study(*told: tuple[float, float | None, float | None]) -> optuna.Study:
    """(learning rate, score, or where it was heading when it was stopped)"""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made, space = optuna.create_study(), {axis.key: axis.distribution for axis in axes()}
    for rate, value, toward in told:
        params = {axis.key: rate if axis.name == "LR" else axis.now for axis in axes()}
        ended = (
            {"value": value} if toward is None else {"state": TrialState.PRUNED, "intermediate_values": {20: toward}}
        )
        made.add_trial(create_trial(params=params, distributions=space, **ended))
    return made


def drawn(made: optuna.Study, sign: int = 1) -> list[float]:
    """Learning rates proposed beside an incumbent of 2.0."""
    space = {axis.key: axis.distribution for axis in axes()}
    key = next(axis.key for axis in axes() if axis.name == "LR")
    found = []
    for seed in range(40):
        made.sampler = Surface(axes(), 2.0, sign, f"{seed}")
        trial = made.ask(space)
        found.append(float(trial.params[key]))
        made.tell(trial, state=TrialState.FAIL)
    return found


def test_it_leaves_what_was_bad_and_a_stopped_run_is_known_by_where_it_was_heading() -> None:
    beside = [(0.1, 2.0, None)]
    high = [(rate, 2.6, None) for rate in (0.5, 1.0, 2.0, 5.0)]
    low = [(rate, 1.9, None) for rate in (0.02, 0.01, 0.005, 0.002)]
    assert np.median(drawn(study(*beside, *high, *low))) < 0.1
    assert np.median(drawn(study(*beside, *high, *low), sign=-1)) > 0.1, "more is better"
    stopped = [(rate, None, 2.6) for rate, _, _ in high]
    assert drawn(study(*beside, *stopped, *low)) == drawn(study(*beside, *high, *low))


def test_the_same_trials_and_seed_draw_the_same() -> None:
    told = [(0.1, 2.0, None), (1.0, 2.3, None)]
    assert drawn(study(*told)) == drawn(study(*told))
    assert len(set(drawn(study(*told)))) > 20
