"""Which proposer is asked, and when again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.desk import BACK_OFF, Desk, Gate
from agent.errors import OvernightError, ProviderOverloaded, Waiting
from agent.values import History, Proposal, Record

HISTORY = History(records=(), incumbent=None, sources={"train.py": ""})
GATE = Gate(check=lambda _: pytest.fail("nothing to check"), affords=lambda _: True, paid=lambda _: None)


class Unable:
    """Never has a proposal. asked: how often it was wanted."""

    def __init__(self, name: str, why: OvernightError) -> None:
        self.name, self.why, self.asked = name, why, 0

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        self.asked += 1
        raise self.why

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        raise AssertionError("nothing was proposed")

    def tell(self, proposal: Proposal, record: Record) -> None:
        raise AssertionError("nothing was tried")


@pytest.mark.parametrize(
    ("asked", "rests"), [(0.0, BACK_OFF[:3]), (200.0, (200.0, 200.0, BACK_OFF[2])), (3600.0, (3600.0,) * 3)]
)
def test_an_overloaded_proposer_rests_at_least_as_long_as_it_asks(asked: float, rests: Sequence[float]) -> None:
    slept: list[float] = []
    desk = Desk([Unable("busy", ProviderOverloaded("busy", retry_after=asked))], lambda _: None, slept.append)
    for _ in range(4):
        assert desk.get(HISTORY, (), GATE) is None
    assert slept == pytest.approx(list(rests), abs=1.0)


def test_who_waits_for_its_runs_is_passed_over_and_nobody_sleeps_while_one_does() -> None:
    said: list[str] = []
    waits = Unable("waits", Waiting("for its runs"))
    busy = Unable("busy", ProviderOverloaded("busy"))
    desk = Desk([waits, busy], said.append, lambda seconds: pytest.fail(f"it sleeps {seconds} s"))
    assert desk.get(HISTORY, (), GATE) is None
    assert (waits.asked, busy.asked, said) == (1, 1, ["busy"])
    with pytest.raises(Waiting):
        desk.get(HISTORY, (), GATE)
    assert (waits.asked, busy.asked, said) == (2, 1, ["busy"]), "it rests"
