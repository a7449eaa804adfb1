"""Gets one candidate out of the proposers: ask, check, and send back what is wrong with it, at most REPAIRS times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.errors import ProposalError, ProviderError, ProviderOverloaded
from agent.trial import Smoke
from agent.values import Candidate, History, Proposal, Proposer

REPAIRS = 2  # after the first attempt; each is charged
BACK_OFF = (60.0, 120.0, 300.0, 900.0)  # seconds, while every proposer is overloaded


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


Check = Callable[[Proposal], tuple[Candidate, Smoke | None]]  # raises ProposalError


class Desk:
    def __init__(
        self, proposers: Sequence[Proposer], say: Callable[[str], None], sleep: Callable[[float], None]
    ) -> None:
        self.proposers = list(proposers)
        self.say, self.sleep = say, sleep
        self.waits = 0

    def named(self, name: str) -> Proposer | None:
        return next((one for one in self.proposers if one.name == name), None)

    def get(
        self,
        history: History,
        in_flight: Sequence[Proposal],
        check: Check,
        affords: Callable[[float], bool],
        crashed: Draft | None = None,
    ) -> Ready | Draft | None:
        """A candidate that may be trained, a draft that was given up, or None when nobody answered.

        crashed: a draft whose training crashed and whose proposer may mend it first. affords: whether one more request
        may be made after so many dollars. Raise ProviderRefused when no proposer is left.
        """
        draft = crashed or Draft(self.proposers[0])
        for _ in range(1 + REPAIRS):
            try:
                exchanged = self._exchange(draft, history, in_flight)
                if exchanged is None and draft is crashed:
                    return None
                if exchanged is None or exchanged.proposal is None:
                    break
                draft = exchanged
                return Ready(draft, *check(exchanged.proposal))
            except ProposalError as error:
                draft = draft.failed(error)
                self.say(f"      {draft.proposer.name}: {str(error).splitlines()[0][:160]}")
            except ProviderError as error:
                draft = replace(
                    draft, cost=draft.cost + error.cost_usd, problem=f"{draft.problem}; {error}".strip("; ")
                )
                self._without(draft.proposer, error)
                return draft if draft.cost else None
            if not affords(draft.cost):
                break
        return draft

    def _exchange(self, draft: Draft, history: History, in_flight: Sequence[Proposal]) -> Draft | None:
        """One question and its answer; None from a proposer that does not repair."""
        if draft.proposal is None:
            answer: Proposal | None = draft.proposer.ask(history, in_flight)
        else:
            answer = draft.proposer.repair(draft.proposal, draft.problem)
        self.waits = 0
        return None if answer is None else draft.answered(answer)

    def _without(self, proposer: Proposer, error: ProviderError) -> None:
        """Refused: that proposer is paused. Overloaded: another one is asked first, and alone it is waited for."""
        self.say(str(error))
        others = [one for one in self.proposers if one is not proposer]
        if isinstance(error, ProviderOverloaded) and others:
            self.proposers = [*others, proposer]
        elif isinstance(error, ProviderOverloaded):
            self.sleep(BACK_OFF[min(self.waits, len(BACK_OFF) - 1)])
            self.waits += 1
        elif others:
            self.proposers = others
            self.say(f"{proposer.name} is paused; going on with {others[0].name}")
        else:
            raise error
