"""Which proposer is asked, and when again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.desk import BACK_OFF, Desk, Gate
from agent.errors import ProviderOverloaded
from agent.values import History, Proposal, Record

HISTORY = History(records=(), incumbent=None, sources={"train.py": ""})


class Busy:
    name = "busy"

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        raise ProviderOverloaded("busy", retry_after=self.retry_after)

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        raise AssertionError("nothing was proposed")

    def tell(self, proposal: Proposal, record: Record) -> None:
        raise AssertionError("nothing was tried")


@pytest.mark.parametrize(
    ("asked", "rests"), [(0.0, BACK_OFF[:3]), (200.0, (200.0, 200.0, BACK_OFF[2])), (3600.0, (3600.0,) * 3)]
)
def test_an_overloaded_proposer_rests_at_least_as_long_as_it_asks(asked: float, rests: Sequence[float]) -> None:
    slept: list[float] = []
    desk = Desk([Busy(asked)], lambda _: None, slept.append)
    gate = Gate(check=lambda _: pytest.fail("nothing to check"), affords=lambda _: True, paid=lambda _: None)
    for _ in range(4):
        assert desk.get(HISTORY, (), gate) is None
    assert slept == pytest.approx(list(rests), abs=1.0)
