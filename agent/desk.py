"""Gets one candidate out of the proposers: ask, check, and send back what is wrong with it, at most REPAIRS times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.errors import ProposalError, ProviderError, ProviderOverloaded, Waiting
from agent.smoke import Smoke
from agent.values import Candidate, History, Proposal, Proposer

REPAIRS = 2  # after the first attempt; each is charged
BACK_OFF = (60.0, 120.0, 300.0, 900.0)  # seconds that an overloaded proposer rests, longer each time in a row


@dataclass(frozen=True)
class Draft:
    """A proposal as far as it got. problem: what is wrong with it, "" for nothing. cost: dollars so far."""

    proposer: Proposer
    proposal: Proposal | None = None
    problem: str = ""
    cost: float = 0.0
    crashes: int = 0

    def answered(self, proposal: Proposal) -> Draft:
        return replace(self, proposal=proposal, cost=self.cost + proposal.cost_usd, problem="")

    def failed(self, error: ProposalError) -> Draft:
        """What the error salvaged counts, and is paid for, like an answer."""
        return replace(self if error.proposal is None else self.answered(error.proposal), problem=str(error))


@dataclass(frozen=True)
class Ready:
    """A draft that may be trained."""

    draft: Draft
    candidate: Candidate
    smoke: Smoke | None


@dataclass(frozen=True)
class Gate:
    """What the desk asks of the session. check: raises ProposalError. affords: may one more request be made after so
    many dollars. paid: told after every exchange."""

    check: Callable[[Proposal], tuple[Candidate, Smoke | None]]
    affords: Callable[[float], bool]
    paid: Callable[[Draft], None]


class Desk:
    """refusal: why the last proposer was refused, once none is left."""

    def __init__(
        self,
        proposers: Sequence[Proposer],
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        pick: Callable[[Sequence[str], History], str] | None = None,
    ) -> None:
        """pick: which of those that are not resting is asked, by name; the first one where it is None."""
        self.proposers, self._pick = list(proposers), pick
        self.say, self.sleep = say, sleep
        self.refusal: ProviderError | None = None
        self._rests: dict[str, float] = {}  # until when, by the monotonic clock
        self._strikes: dict[str, int] = {}

    def named(self, name: str) -> Proposer | None:
        return next((one for one in self.proposers if one.name == name), None)

    def get(
        self, history: History, in_flight: Sequence[Proposal], gate: Gate, crashed: Draft | None = None
    ) -> Ready | Draft | None:
        """A candidate that may be trained, a draft that was given up, or None when nobody answered.

        crashed: a draft whose training crashed and whose proposer may mend it first. Raise Waiting when all that
        are not resting wait for their runs in flight.
        """
        if crashed is not None:
            return self._pursue(crashed, history, in_flight, gate)
        able = self.proposers
        while True:
            one = self._choose(able, history)
            try:
                return self._pursue(Draft(one), history, in_flight, gate)
            except Waiting:
                able = [other for other in able if other is not one and self._rest(other) <= 0]
                if not able:
                    raise

    def _pursue(
        self, begun: Draft, history: History, in_flight: Sequence[Proposal], gate: Gate
    ) -> Ready | Draft | None:
        """The draft, as far as it gets."""
        draft = begun
        if not gate.affords(draft.cost):  # while it rested
            return None
        for _ in range(1 + REPAIRS):
            try:
                answer = self._exchange(draft, history, in_flight)
                if answer is None:
                    return None if draft is begun else draft
                draft = draft.answered(answer)
                gate.paid(draft)
                return Ready(draft, *gate.check(answer))
            except ProposalError as error:
                draft = draft.failed(error)
                gate.paid(draft)
                self.say(f"      {draft.proposer.name}: {str(error).splitlines()[0][:160]}")
            except ProviderError as error:
                draft = replace(
                    draft, cost=draft.cost + error.cost_usd, problem=f"{draft.problem}; {error}".strip("; ")
                )
                self._without(draft.proposer, error)
                return draft if draft.cost else None
            if not gate.affords(draft.cost):
                break
        return draft

    def _exchange(self, draft: Draft, history: History, in_flight: Sequence[Proposal]) -> Proposal | None:
        """One question and its answer; None from a proposer that does not repair."""
        if draft.proposal is None:
            answer: Proposal | None = draft.proposer.ask(history, in_flight)
        else:
            answer = draft.proposer.repair(draft.proposal, draft.problem)
        self._strikes.pop(draft.proposer.name, None)
        return answer

    def _choose(self, proposers: Sequence[Proposer], history: History) -> Proposer:
        """One of them that is not resting; when all are, the one that rests shortest, after its rest."""
        first = min(proposers, key=lambda one: max(0.0, self._rest(one)))
        if self._rest(first) > 0:
            self.sleep(self._rest(first))
            return first
        awake = [one.name for one in proposers if self._rest(one) <= 0]
        return first if self._pick is None else self.named(self._pick(awake, history)) or first

    def _rest(self, proposer: Proposer) -> float:
        """Seconds left."""
        return self._rests.get(proposer.name, 0.0) - time.monotonic()

    def _without(self, proposer: Proposer, error: ProviderError) -> None:
        """Overloaded: it rests. Refused: it is paused for good."""
        self.say(str(error))
        name = proposer.name
        if isinstance(error, ProviderOverloaded):
            strikes = self._strikes[name] = self._strikes.get(name, 0) + 1
            rest = max(error.retry_after, BACK_OFF[min(strikes, len(BACK_OFF)) - 1])
            self._rests[name] = time.monotonic() + rest
            return
        self.proposers = [one for one in self.proposers if one is not proposer]
        if not self.proposers:
            self.refusal = error
        else:
            self.say(f"{name} is paused; going on with {self.proposers[0].name}")
