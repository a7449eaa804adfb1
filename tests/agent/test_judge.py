"""Facts to a verdict, whichever end of the metric is better. What audits leave of a keep: tests/agent/test_audit.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import Task
from agent.judge import EARLY, LEVEL, RERUNS, SLACK, SPARE, WORTH, Confirm, Greedy, Judge, Standing, after_audit
from agent.noise import Noise, Spread
from agent.values import Audit, Candidate, Finding, Proposal, Record, Run, RunAgain, Status, Trial, Verdict
from sandbox.metrics import Metrics
from sandbox.process import Ending, Execution

EXECUTION = Execution(Ending.EXITED, 0, None, 1.0, 10.0, Path("run.log"), 0.0)
METRICS = Metrics(1.0, 1.0, 1.0, 10.0, None, 0.1, 10, 0.1, 1)
INCUMBENT = Record("0" * 7, 1.25, 0.1, "keep", "before", trial=1, budget="10steps")
KEEP = Verdict(Status.KEEP, "better")
NOISE = Noise(Spread(0.01, 8.0), Spread(0.01, 8.0))
SEEDS = tuple(range(101, 101 + RERUNS + SPARE))


def trial(value: float | None, budget: str = "10steps") -> Trial:
    metrics = None if value is None else replace(METRICS, val_bpb=value)
    run = Run(42, budget, EXECUTION, metrics, "" if metrics else "exit 1: ValueError: no")
    return Trial(2, "1" * 40, Candidate(Proposal((), "x"), {}, "0" * 40, "", ""), (run,))


@pytest.mark.parametrize(
    ("direction", "value", "status", "reason"),
    [
        ("min", 1.0, Status.KEEP, "-0.250000 against 1.250000"),
        ("min", 1.25, Status.DISCARD, "+0.000000 against 1.250000"),
        ("min", 1.5, Status.DISCARD, "+0.250000 against 1.250000"),
        ("max", 1.5, Status.KEEP, "+0.250000 against 1.250000"),
        ("max", 1.25, Status.DISCARD, "+0.000000 against 1.250000"),
        ("max", 1.0, Status.DISCARD, "-0.250000 against 1.250000"),
    ],
)
def test_only_what_is_better_is_kept(direction: str, value: float, status: Status, reason: str) -> None:
    judge = Greedy(Task(direction=direction))
    assert judge.decide(trial(value), Standing(INCUMBENT, NOISE)) == Verdict(status, reason)


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("kind", [Greedy, Confirm])
def test_what_cannot_be_compared(direction: str, kind: Callable[[Task], Judge]) -> None:
    judge = kind(Task(direction=direction))
    first, against = Standing(None, NOISE), Standing(INCUMBENT, NOISE)
    assert judge.decide(trial(9.0), first) == Verdict(Status.KEEP, "baseline")
    assert judge.decide(trial(None), first) == Verdict(Status.CRASH, "exit 1: ValueError: no")
    assert judge.decide(trial(None), against) == Verdict(Status.CRASH, "exit 1: ValueError: no")
    bare = Standing(replace(INCUMBENT, val_bpb=None), NOISE)
    assert judge.decide(trial(9.0), bare) == Verdict(Status.KEEP, "the incumbent has no number")
    other = Verdict(Status.DISCARD, "budget 20steps is not ranked against 10steps")
    assert [judge.decide(trial(value, "20steps"), against) for value in (0.1, 9.0)] == [other, other]


@dataclass
class Course:
    """A trial led to its end: what the judge asked for on the way, and what it said last."""

    asked: list[RunAgain]
    verdict: Verdict
    runs: int


def course(
    start: float, fresh: Sequence[float | None], theirs: Sequence[float | None], direction: str = "min", **more: Any
) -> Course:
    """Scores of the candidate's first run, then of it and of the incumbent on fresh seeds, where the judge asks."""
    judge, asked, one = Confirm(Task(direction=direction)), [], trial(start)
    standing = Standing(**{"incumbent": INCUMBENT, "noise": NOISE, "seeds": SEEDS, "first": 1.25} | more)
    for _ in range(20):
        wanted = judge.decide(one, standing)
        if isinstance(wanted, Verdict):
            return Course(asked, wanted, len(one.runs))
        asked.append(wanted)
        if wanted.incumbent:
            standing = replace(standing, defence={**standing.defence, wanted.seed: theirs[len(one.runs) - 2]})
        else:
            run = replace(trial(fresh[len(one.runs) - 1]).runs[0], seed=wanted.seed)
            one = replace(one, runs=(*one.runs, run))
    raise AssertionError("the judge never ends")


SAME = (1.25, 1.25, 1.25)


def test_a_clear_loss_and_what_is_hardly_a_gain_cost_one_run() -> None:
    for value in (1.30, 1.25, 1.25 - 0.9 * WORTH * 0.01):
        found = course(value, SAME, SAME)
        assert (found.asked, found.verdict.status) == ([], Status.DISCARD)
    assert course(1.25 - 1.1 * WORTH * 0.01, SAME, SAME).asked


def test_luck_of_the_first_run_is_in_no_later_number() -> None:
    """However good it was: on fresh seeds it is as good as the incumbent."""
    found = course(0.5, (1.251, 1.249, 1.25), SAME)
    assert found.verdict.status is Status.DISCARD
    assert found.verdict.finding is not None
    assert found.verdict.finding.gain == pytest.approx(-0.001)  # and a mean loss ended it at once
    assert found.runs == 2


def test_a_clear_gain_takes_one_fresh_seed_on_which_both_run() -> None:
    found = course(1.2, (1.2,), SAME)
    assert found.verdict.status is Status.KEEP
    assert [wanted.incumbent for wanted in found.asked] == [False, True]
    assert len({wanted.seed for wanted in found.asked}) == 1
    assert found.asked[0].seed == SEEDS[0]


def test_a_small_gain_takes_them_all_and_the_bound_is_students() -> None:
    gains = (0.012, 0.006, 0.009)
    found = course(1.24, [1.25 - gain for gain in gains], SAME)
    t_80_8 = 0.8889  # from a table: one-sided 80 %, 8 degrees of freedom
    assert found.verdict.finding is not None
    assert found.verdict.finding.bound == pytest.approx(0.009 - t_80_8 * 0.01 / RERUNS**0.5, abs=1e-6)
    assert (found.verdict.status, found.runs, LEVEL) == (Status.KEEP, 1 + RERUNS, 0.8)
    assert len({wanted.seed for wanted in found.asked}) == RERUNS == 3
    weak = course(1.24, [1.25 - gain / 3 for gain in gains], SAME)
    assert (weak.verdict.status, weak.runs) == (Status.DISCARD, 1 + RERUNS)


@pytest.mark.parametrize(("direction", "better"), [("min", -1), ("max", 1)])
def test_a_keep_s_value_is_the_incumbent_s_and_the_gain(direction: str, better: int) -> None:
    """On these seeds both score higher than on the first one: that is no loss."""
    found = course(1.25 + 0.05 * better, (1.95 + 0.05 * better,), (1.95,), direction)
    assert found.verdict.status is Status.KEEP
    assert found.verdict.finding is not None
    assert found.verdict.finding.value == pytest.approx(1.25 + 0.05 * better, abs=1e-4)
    assert found.verdict.finding.score == pytest.approx(1.95 + 0.05 * better)


def test_before_the_last_seed_only_what_luck_hardly_shows_is_kept() -> None:
    t_98_8 = 2.449  # from a table: one-sided 98 %, 8 degrees of freedom
    assert EARLY == 0.98
    assert course(1.2, (1.25 - 1.01 * t_98_8 * 0.01, 1.25, 1.25), SAME).runs == 2
    assert course(1.2, (1.25 - 0.99 * t_98_8 * 0.01, 1.25, 1.25), SAME).runs > 2


def test_more_is_better_where_the_task_says_so() -> None:
    assert course(1.3, (1.3,), SAME, "max").verdict.status is Status.KEEP
    assert course(1.2, (1.3,), SAME, "max").verdict.status is Status.DISCARD
    assert course(1.3, (1.2,), SAME, "max").verdict.status is Status.DISCARD


def test_challengers_meet_the_incumbent_on_its_seeds_and_run_it_no_more() -> None:
    found = course(1.2, (1.2,), (), defence={SEEDS[0]: 1.25})
    assert [wanted.incumbent for wanted in found.asked] == [False]
    assert found.verdict.status is Status.KEEP


def test_the_first_runs_are_compared_on_one_seed() -> None:
    """The incumbent's value comes from other seeds, which may be easier ones."""
    assert course(1.2, SAME, SAME, first=1.1).asked == []
    assert course(1.26, (1.2,), SAME, first=1.4).verdict.status is Status.KEEP
    assert course(1.2, (1.2,), SAME, first=None).verdict.status is Status.KEEP


def test_a_run_that_ends_badly_on_a_fresh_seed() -> None:
    crashed = course(1.2, (None,), SAME).verdict
    assert crashed.status is Status.CRASH
    assert crashed.reason.endswith("exit 1: ValueError: no")
    assert crashed.reason.startswith("on a fresh seed: ")


def test_where_the_incumbent_ends_badly_another_seed_stands_in() -> None:
    """Else nothing could ever beat it again."""
    found = course(1.2, (1.2, 1.2), (None, 1.25))
    assert found.verdict.status is Status.KEEP
    assert found.verdict.finding is not None
    assert [*found.verdict.finding.gains] == [found.asked[-1].seed]
    assert len({wanted.seed for wanted in found.asked}) == 2
    never = course(1.2, (1.2,) * 6, (None,) * 6).verdict
    assert never.status is Status.DISCARD
    assert "nothing to compare with" in never.reason


def test_simpler_may_lose_a_little_once() -> None:
    """Within half a sigma, as far as that can be told; what was given away before counts."""
    known = Noise(Spread(0.01, 8.0), Spread(0.004, 1e6))
    standing = {"simpler": True, "noise": known}
    slight = [value + 0.001 for value in SAME]

    def ends(fresh: Sequence[float], **more: Any) -> Verdict:
        return course(1.2501, fresh, SAME, **standing | more).verdict

    verdict = ends(slight)
    assert verdict.status is Status.KEEP
    assert verdict.reason.startswith("simpler: ")
    assert verdict.finding is not None
    assert verdict.finding.conceded == pytest.approx(0.001)
    assert ends(slight, simpler=False).status is Status.DISCARD
    assert ends([value + 0.004 for value in SAME]).status is Status.DISCARD  # at worst it is more than half a sigma
    assert ends([value + SLACK * 0.01 + 0.001 for value in SAME]).status is Status.DISCARD
    assert ends(slight, conceded=0.0085).status is Status.KEEP
    assert ends(slight, conceded=0.0095).status is Status.DISCARD
    wide = Noise(known.over_seeds, Spread(0.02, 8.0))
    assert ends(slight, noise=wide).status is Status.DISCARD
    assert ends(SAME, noise=wide).status is Status.KEEP  # to the last digit on every seed


def test_what_was_given_away_has_to_be_won_back() -> None:
    """A small gain does not wipe out what simplicity has cost."""
    small = course(1.24, [value - 0.009 for value in SAME], SAME, conceded=0.0095).verdict
    assert small.status is Status.KEEP
    assert small.finding is not None
    assert small.finding.conceded == pytest.approx(0.0005)
    large = course(1.2, (1.2,), SAME, conceded=0.0095).verdict
    assert large.finding is not None
    assert large.finding.conceded == 0.0


@pytest.mark.parametrize(("direction", "sign"), [("min", 1.0), ("max", -1.0)])
def test_simpler_code_may_lose_a_little_on_the_held_back_split_too(direction: str, sign: float) -> None:
    before, task = Audit(4096, 2.0, 2.0, 1e-6, 1.30), Task(direction=direction)

    def after(loss: float, bound: float) -> Status:
        finding = Finding({1: -0.001}, bound, 0.004, 8.0, 1.4, 1.3, conceded=0.001)
        audit = Audit(4096, 2.0, 2.0, 1e-6, 1.30 + loss * sign)
        return after_audit(Verdict(Status.KEEP, "kept", finding), audit, before, "cpu", task).status

    assert after(0.003, -0.004) is Status.KEEP
    assert after(0.005, -0.004) is Status.DISCARD
    assert after(0.003, 0.001) is Status.DISCARD  # for a gain it has to be one there, too
    gain = Verdict(Status.KEEP, "kept", Finding({1: 0.002}, 0.001, 0.004, 8.0, 1.4, 1.3))
    refused = after_audit(gain, replace(before, held_bpb=1.30 + 0.01 * sign), before, "cpu", task)
    assert (refused.status, refused.finding) == (Status.DISCARD, gain.finding)  # whose value is the row's, not luck's
    assert after(-0.001, 0.001) is Status.KEEP


@pytest.mark.parametrize(
    ("direction", "held", "status", "change"),
    [
        ("min", 1.4, Status.KEEP, ""),
        ("min", 1.6, Status.DISCARD, "+0.100000"),
        ("max", 1.6, Status.KEEP, ""),
        ("max", 1.4, Status.DISCARD, "-0.100000"),
        ("max", 1.5, Status.DISCARD, "+0.000000"),
    ],
)
def test_a_gain_has_to_show_on_the_held_back_split_in_the_same_direction(
    direction: str, held: float, status: Status, change: str
) -> None:
    audit = Audit(4096, 2.0, 2.0, 1e-6, held)
    verdict = after_audit(KEEP, audit, replace(audit, held_bpb=1.5), "cpu", Task(direction=direction))
    lost = Verdict(Status.DISCARD, f"better, but {change} on the held-back split: no gain")
    assert verdict == (KEEP if status is Status.KEEP else lost)
