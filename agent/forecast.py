"""What a session will take, as far as it can be known before it starts: trials, hours, dollars."""

from __future__ import annotations

from collections.abc import Sequence

from agent.proposers.llm import LLM
from agent.stops import Stop
from agent.trial import Pace
from agent.values import History, Proposer
from corpus.budget import Budget


def forecast(budget: str, pace: Pace, stop: Stop, proposers: Sequence[Proposer], history: History) -> str:
    """One line for a person. pace: the baseline's times, where it has run."""
    return f"expected: {_trials(stop)}, {_hours(_seconds(budget, pace), stop)}, {_dollars(stop, proposers, history)}"


def _trials(stop: Stop) -> str:
    return "trials until something stops it" if stop.experiments is None else f"{stop.experiments} trials"


def _seconds(budget: str, pace: Pace) -> float | None:
    """Of one trial: as the baseline took; before it has run, the budget where that is in seconds."""
    if pace.train is not None:
        return pace.train + (pace.score or 0.0) + (pace.smoke or 0.0)
    parsed = Budget.parse(budget)
    return parsed.amount if parsed.unit == "s" else None


def _hours(seconds: float | None, stop: Stop) -> str:
    if seconds is None:
        return "hours known after the baseline"
    if stop.experiments is None:
        return f"about {3600 / seconds:.0f} an hour"
    return f"about {stop.experiments * seconds / 3600:.1f} hours"


def _dollars(stop: Stop, proposers: Sequence[Proposer], history: History) -> str:
    cap = "" if stop.max_usd is None else f", none asked for after ${stop.max_usd:.2f}"
    if any(proposer.name == "command" for proposer in proposers):
        return f"dollars unknown (the command's own account){cap}"
    models = [proposer for proposer in proposers if isinstance(proposer, LLM)]
    if not models:
        return "$0"
    each = models[0].expected_usd(history)
    total = "" if stop.experiments is None else f", ${each * stop.experiments:.2f} in all"
    return f"about ${each:.4f} a proposal{total}{cap}"
