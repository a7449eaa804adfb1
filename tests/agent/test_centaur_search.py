"""The parts of the centaur: knobs as a cube, CMA-ES as a function of its tells, what a model sees and may answer."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.clients.base import Reply, Usage
from agent.constants import find
from agent.errors import ReplyError
from agent.proposers.axis import Axis
from agent.proposers.centaur import brief
from agent.proposers.centaur.override import TEXT_FORMAT, TOOL, read
from agent.proposers.centaur.search import SIGMA, Origin, Search, Tell, moved
from agent.proposers.centaur.state import CMAES, MODEL, ORIGIN, Answer, Asked, State
from agent.proposers.cube import Cube, spread
from agent.values import History
from tests.agent.test_knobs import BASELINE, TRAIN

KNOBS = """\
LR = 0.02  # range: 0.01..1.0 log
DEPTH = 4  # range: 1..8
DECAY = 0.1  # range: 0.0..0.4
KIND = 'a'  # range: a|b|c
FLAG = True
ROWS = 16  # range: 1..1024 log
BETAS = (0.8, 0.95)  # range: (0.8, 0.95)
EPS = 1e-8  # range: fixed
"""


def cube(source: str = KNOBS) -> Cube:
    found = find(source, "cpu")
    return Cube(tuple(Axis(constant, constant.range) for constant in found if constant.range is not None))


def origin(count: int = 4, bins: int = 0) -> Origin:
    keys = tuple(f"X{n}" for n in range(count))
    return Origin("code", keys, (bins,) * count, (0.5,) * count)


def tells(search: Origin, count: int, seed: int = 0) -> list[Tell]:
    """Results of the search itself, lower to the left, with two axes that go together."""
    found: list[Tell] = []
    for n in range(count):
        point = Search(search, found).draw(f"{seed} {n}")[1]
        found.append(Tell(tuple(point), float(np.sum(point) + 20 * (point[0] - point[1]) ** 2), foreign=False))
    return found


# ── the cube ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_values_come_back_from_the_cube() -> None:
    knobs = cube()
    assert knobs.decode(knobs.now) == {"LR": 0.02, "DEPTH": 4, "DECAY": 0.1, "KIND": "a", "FLAG": True, "ROWS": 16}
    every = cube(TRAIN)
    assert every.decode(every.now) == {axis.name: axis.constant.value for axis in every.axes}
    assert np.all((every.now >= 0) & (every.now <= 1))


def test_the_ends_of_the_cube_are_the_ends_of_the_ranges() -> None:
    knobs = cube()
    lowest, highest = (knobs.decode([end] * 6) for end in (-0.5, 1.5))
    assert lowest == {"LR": 0.01, "DEPTH": 1, "DECAY": 0.0, "KIND": "a", "FLAG": False, "ROWS": 1}
    assert highest == {"LR": 1.0, "DEPTH": 8, "DECAY": 0.4, "KIND": "c", "FLAG": True, "ROWS": 1024}


def test_ratios_and_bins_have_equal_widths() -> None:
    knobs = cube()
    middle = knobs.decode([0.5] * 6)
    assert (middle["LR"], middle["ROWS"]) == (0.1, 32)
    depths = [knobs.decode([0.5, u, 0.5, 0.5, 0.5, 0.5])["DEPTH"] for u in np.linspace(0.001, 0.999, 800)]
    assert [depths.count(depth) for depth in range(1, 9)] == [100] * 8


def test_a_deviation_is_told_in_the_knobs_own_unit() -> None:
    told = {axis.name: spread(axis, 0.25) for axis in cube().axes}
    assert told["LR"] == f"a factor of {math.sqrt(math.sqrt(100)):.3g}"
    assert told["DEPTH"] == "2"
    assert told["DECAY"] == "0.1"
    assert told["KIND"] == "0.75 places in the list"


# ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_tells_and_seed_give_the_same_suggestion() -> None:
    told = tells(origin(), 20)
    first, second = (Search(origin(), told) for _ in range(2))
    for seed in ("a", "b"):
        assert np.array_equal(first.draw(seed)[0], second.draw(seed)[0])
    assert not np.array_equal(first.draw("a")[0], first.draw("b")[0])
    assert first.generation == 20 // first.size


def test_suggestions_stay_in_the_cube_and_choices_on_their_bins() -> None:
    search = Search(replace(origin(3, bins=4), mean=(0.0, 0.125, 1.0)), ())
    found = np.array([search.draw(str(n))[0] for n in range(200)])
    assert {round(float(u), 6) for u in found.flatten()} <= {0.125, 0.375, 0.625, 0.875}
    assert len(set(found[:, 0])) >= 2, "a step of a quarter is in reach"
    edge = Search(replace(origin(), mean=(0.0, 1.0, 0.0, 1.0)), ())
    found = np.array([edge.draw(str(n))[0] for n in range(100)])
    assert np.all((found >= 0) & (found <= 1))


def test_a_choice_does_not_get_stuck() -> None:
    """Many generations that prefer one bin leave its neighbours in reach."""
    start, told = origin(3, bins=3), []
    for n in range(120):
        place, drawn = Search(start, told).draw(str(n))
        told.append(Tell(tuple(drawn), float(np.sum(np.abs(place - 0.5))), foreign=False))
    search = Search(start, told)
    found = np.array([search.draw(str(n))[0] for n in range(400)])
    assert all(len(set(column)) > 1 for column in found.T.round(6))


def test_a_foreign_point_is_told_no_farther_than_one_could_have_been_drawn() -> None:
    search = Search(replace(origin(), sigma=0.01), ())
    far = search._injected((1.0, 0.5, 0.5, 0.5))
    assert far[0] - 0.5 == pytest.approx(0.01 * (math.sqrt(4) + 8 / 6))
    near = (0.505, 0.495, 0.5, 0.5)
    assert search._injected(near) == pytest.approx(np.array(near))


def test_a_good_foreign_point_pulls_the_mean() -> None:
    def mean(foreign: float) -> float:
        rest = [Tell((0.5, 0.5, 0.5, 0.5 + n / 100), 2.0 + n, foreign=False) for n in range(7)]
        return float(Search(origin(), [Tell((foreign, 0.5, 0.5, 0.5), 1.0, foreign=True), *rest]).mean[0])

    assert mean(0.8) > 0.5 > mean(0.2)


def test_failures_push_away() -> None:
    told = [Tell((0.3 if n % 2 else 0.7, 0.5, 0.5, 0.5 + n / 99), None if n % 2 else 1.0, False) for n in range(8)]
    assert Search(origin(), told).mean[0] > 0.55


def test_a_move_keeps_the_shape_on_the_axes_that_stay() -> None:
    told = tells(origin(), 80)
    new = replace(origin(), keys=("X1", "NEW", "X0"), bins=(0, 0, 0), mean=(0.2, 0.5, 0.8))
    after = moved(origin(), told, new)
    learned = Search(origin(), told).covariance
    cov = np.array(after.cov)
    assert abs(learned[0, 1]) > 0.05 * learned[0, 0]
    assert cov[0, 2] / cov[0, 0] == pytest.approx(learned[0, 1] / learned[1, 1])
    assert (cov[0, 0] + cov[2, 2]) / 2 == pytest.approx(1.0)
    assert cov[1].tolist() == [0.0, 1.0, 0.0]
    assert Search(after, ()).mean.tolist() == [0.2, 0.5, 0.8]


# ── the model's answer ───────────────────────────────────────────────────────────────────────────────────────────────


def said(text: str, **more: Any) -> Reply:
    return Reply(text, None, None, Usage(), 0.0, "m", **more)


def test_an_override_is_read_wherever_it_stands() -> None:
    json_ = '{"knobs": {"LR": 0.5, "DEPTH": 3.0, "KIND": "b", "FLAG": false, "DECAY": 0}, "why": "a\\n reason"}'
    wanted = {"LR": 0.5, "DEPTH": 3, "KIND": "b", "FLAG": False, "DECAY": 0.0}
    for reply in (
        said(json_),
        said(f"Let me {{think}}. ```json\n{json_}\n``` Done."),
        replace(said(""), tool_arguments=json_),
    ):
        override = read(reply, cube())
        assert (override.values, override.why) == (wanted, "a reason")
    assert isinstance(override.values["DEPTH"], int)


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ('{"LR": 3}', r"LR: expected a number in 0.01..1, found '3'"),
        ('{"LR": NaN}', "LR: expected a number"),
        ('{"LR": "high"}', "found 'high'"),
        ('{"LR": true}', "LR: expected a number"),
        ('{"DEPTH": 2.5}', "DEPTH: expected a whole number in 1..8"),
        ('{"KIND": "z"}', 'KIND: expected "a" or "b" or "c"'),
        ('{"FLAG": 1}', "FLAG: expected False or True"),
        ('{"EPS": 1e-9}', "expected knobs among LR, DEPTH, .* found EPS"),
        ("[1]", "expected an object as `knobs`"),
    ],
)
def test_what_cannot_be_is_refused(knobs: str, problem: str) -> None:
    with pytest.raises(ReplyError, match=problem):
        read(said(f'{{"knobs": {knobs}, "why": "x"}}'), cube())


@pytest.mark.parametrize("text", ["", "no", "{", '{"why": "x"}', "{" * 5000])
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(ReplyError, match="expected a JSON object with `knobs`"):
        read(said(text), cube())


def test_a_reply_that_was_cut_off_is_refused() -> None:
    with pytest.raises(ReplyError, match="cut off"):
        read(said(TEXT_FORMAT, truncated=True), cube())


# ── what the model sees ──────────────────────────────────────────────────────────────────────────────────────────────


def asked(number: int, by: str, search: int = 0, lr: str = "0.02") -> Asked:
    return Asked(number, search, by, (0.5,) * 4, (0.5,) * 4, (0.5,) * 4, str(number), {"LR": lr, "KIND": '"a"'})


def shown(direction: str = "min", sign: int = 1) -> str:
    """After 30 results: every third one failed, the code changed after the second."""
    points = [asked(0, ORIGIN), *(asked(n, MODEL if n % 5 == 0 else CMAES, int(n > 2)) for n in range(1, 31))]
    answers = [
        Answer(n, None if n % 3 == 0 else sign * (1.0 + n / 100), n, "crash" if n % 3 == 0 else "discard")
        for n in range(31)
    ]
    start = origin()
    state = State({}, (start, start), tuple(points), tuple(answers))
    four = Cube(cube().axes[:4])
    past = History((BASELINE,), BASELINE, {}, guidance="stay below 0.5\x1b[1m", direction=direction)
    talk = brief.build(past, state, Search(start, tells(start, 60)), four, asked(31, CMAES, 1, "0.33"))
    assert len(talk.system) == 1
    return talk.as_text()


def test_the_prompt_says_all_that_is_known() -> None:
    text = shown()
    for words in (
        "LR 0.01..1, log scale", "DEPTH 1..8, whole", 'KIND "a"|"b"|"c"',
        "LR: mean ", "standard deviation a factor of", "Step size sigma", "Generation 7, 8 results each",
        "DEPTH and LR: +", "LR: 0.33 (the incumbent has 0.02)", "stay below 0.5", "lower is better", TEXT_FORMAT,
        "call it once", "crash no value",
    ):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text
    assert text.index("The knobs and their bounds") < text.index("The search distribution")


def test_the_prompt_has_the_best_and_the_last_trials() -> None:
    text = shown()
    best = text.split("# Best 5 trials")[1].split("#")[0]
    assert re.findall(r"trial (\d+) \(by ([^)]*)\)", best) == [
        ("4", "CMA-ES"), ("5", "model"), ("7", "CMA-ES"), ("8", "CMA-ES"), ("10", "model"),
    ]  # fmt: skip
    last = text.split("# Last trials")[1].split("#")[0]
    assert re.findall(r"trial (\d+)", last) == [str(n) for n in range(11, 31)]
    assert 'discard 1.110000: LR=0.02 KIND="a"' in last


def test_where_more_is_better_values_keep_their_sign() -> None:
    text = shown("max", -1)
    assert "higher is better" in text
    assert "discard 1.110000" in text
    assert re.findall(r"trial (\d+)", text.split("# Best 5 trials")[1].split("#")[0])[0] == "29"


def test_the_tool_asks_for_what_is_read() -> None:
    assert set(TOOL["parameters"]["required"]) == {"knobs", "why"}
    with pytest.raises(ReplyError, match="found NAME"):
        read(said(TEXT_FORMAT.replace("value", "1")), cube())


def excess(sigma: float, seed: int, count: int = 60) -> float:
    """Best of so many suggestions for train.py's own knobs, on a bowl near its values: share of the bowl's depth."""
    knobs = cube(TRAIN)
    rng = np.random.default_rng(seed)
    lowest = np.clip(knobs.now + rng.normal(0, 0.2, len(knobs.axes)), 0, 1)
    start, told = replace(Origin.of("code", knobs), sigma=sigma), []
    search = Search(start, told)
    for n in range(count):
        if n % search.size == 0:
            search = Search(start, told)
        place, drawn = search.draw(f"{seed} {n}")
        told.append(Tell(tuple(drawn), float(np.sum((place - lowest) ** 2)), foreign=False))
    return min(tell.value or 0.0 for tell in told) / float(np.sum((knobs.now - lowest) ** 2))


def test_a_night_of_twenty_knobs_gets_somewhere() -> None:
    """And farther than with the usual first step."""
    ours, usual = (np.median([excess(sigma, seed) for seed in range(9)]) for sigma in (SIGMA, 0.2))
    assert ours < 0.65
    assert ours < usual
