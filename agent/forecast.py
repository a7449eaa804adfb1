"""What a session will take, as far as it can be known before it starts: trials, hours, dollars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agent.proposers.evolve.proposer import Evolve
from agent.recording import Origin
from agent.stops import Stop
from agent.trial import Bench
from agent.values import History, Proposer
from corpus.budget import Budget

EFFICIENCY = 0.3  # of the machine's matmul rate, reached in training; a guess until the baseline has run
OVERHEAD_SECONDS = 20.0  # start-up, smoke run and scoring; likewise


@runtime_checkable
class Charging(Protocol):
    """A proposer that knows what it will cost."""

    def expected_usd(self, history: History) -> float | None:
        """Dollars of one proposal, on average; None where nobody is asked."""
        ...


def forecast(
    origin: Origin, bench: Bench, stop: Stop, done: int, proposers: Sequence[Proposer], history: History
) -> str:
    """One line for a person. done: experiments that the session already has."""
    left = None if stop.experiments is None else max(0, stop.experiments - done)
    trials = "trials until something stops it" if left is None else f"{left} trials"
    hours, dollars = _hours(origin, bench, stop, left), _dollars(stop, left, proposers, history)
    return f"expected: {trials}, {hours}, {dollars}{_evolution(origin, bench, proposers)}"


def _hours(origin: Origin, bench: Bench, stop: Stop, left: int | None) -> str:
    parts = _seconds(Budget.parse(origin.budget), bench)
    seconds = parts and sum(parts)
    until = "" if stop.until is None else f", until {stop.until:%H:%M} at the latest"
    if seconds is None:
        return f"hours known after the baseline{until}"
    return (
        f"about {3600 / seconds:.0f} an hour" if left is None else f"about {left * seconds / 3600:.1f} hours"
    ) + until


def _seconds(budget: Budget, bench: Bench) -> tuple[float, float] | None:
    """Of one trial, training and all around it: as the baseline took; before it has run, what the budget says or the
    machine's speed suggests."""
    if bench.pace.train is not None:
        return bench.pace.train, (bench.pace.score or 0.0) + (bench.pace.smoke or 0.0)
    if budget.unit == "s":
        return budget.amount, OVERHEAD_SECONDS
    if budget.unit == "flop" and bench.machine.device == "cpu":
        return budget.amount / (EFFICIENCY * bench.machine.cpu_gflops * 1e9), OVERHEAD_SECONDS
    return None


def _evolution(origin: Origin, bench: Bench, proposers: Sequence[Proposer]) -> str:
    """What its preset takes, whatever number of trials was asked for."""
    evolve = next((proposer for proposer in proposers if isinstance(proposer, Evolve)), None)
    parts = _seconds(Budget.parse(origin.budget), bench)
    if evolve is None:
        return ""
    return f"; {evolve.estimate(*parts)}" if parts else f"; {evolve.name}: hours known after the baseline"


def _dollars(stop: Stop, left: int | None, proposers: Sequence[Proposer], history: History) -> str:
    cap = "" if stop.max_usd is None else f", none asked for after ${stop.max_usd:.2f}"
    if any(proposer.name == "command" for proposer in proposers):
        return f"dollars unknown (the command's own account){cap}"
    expected = (proposer.expected_usd(history) for proposer in proposers if isinstance(proposer, Charging))
    each = next((dollars for dollars in expected if dollars is not None), None)
    if each is None:
        return "$0"
    total = "" if left is None else f", ${each * left:.2f} in all"
    return f"about ${each:.4f} a proposal{total}{cap}"
