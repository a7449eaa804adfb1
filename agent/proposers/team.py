"""Several language models as one proposer: one of them is chosen for each proposal, and mends what it proposed.

Which model had which trial is in a file of its own; what came of it, and what it cost, is in the ledger. So the rows
stay those of one proposer, `llm`, to which the rules for models apply all together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent.errors import ProviderError, ProviderOverloaded, ProviderRefused, ReplyError, StateError
from agent.ledger import kept
from agent.proposers.choice import Past, choose
from agent.proposers.llm import LLM
from agent.values import History, Proposal, Record
from sandbox.workspace import write_aside

REST_SECONDS = 300.0  # that an overloaded model is left alone at least, while others answer


class Team:
    """Implements agent.values.Proposer. A proposal's key is its conversation's, a space and its model's name."""

    def __init__(
        self, members: Mapping[str, LLM], *, state: Path, seed: int, say: Callable[[str], None] = print,
        name: str = "llm",
    ) -> None:  # fmt: skip
        """members: by the model's name. state: a folder of this proposer's own. say: for a person, one line."""
        self.name = name
        self._members, self._seed, self._say = dict(members), seed, say
        self._file = state / "team.json"
        self._trials = _read(self._file)
        self._refused: dict[str, ProviderError] = {}
        self._rests: dict[str, float] = {}  # until when, by the monotonic clock

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """Of the model chosen; of another one where it does not answer. ProviderError when none of them does."""
        spent = 0.0
        while able := self._able():
            name = choose({one: self._past(one, history) for one in able}, self._draw(history, in_flight, len(able)))
            try:
                return _marked(self._members[name].ask(history, in_flight), name, spent)
            except ReplyError as error:
                raise _again(error, name, spent) from error
            except ProviderError as error:
                spent += error.cost_usd
                self._without(name, error)
        raise self._nobody(spent)

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """By the model that proposed it, in its conversation. Where it does not answer and others would, ReplyError:
        what it cost is charged, and the next proposal is another's."""
        key, _, name = proposal.key.partition(" ")
        if name not in self._able():
            return None
        try:
            mended = self._members[name].repair(replace(proposal, key=key), problem)
            return None if mended is None else _marked(mended, name)
        except ReplyError as error:
            raise _again(error, name) from error
        except ProviderError as error:
            self._without(name, error)
            if not self._able():
                raise
            raise ReplyError(str(error), proposal=replace(proposal, cost_usd=error.cost_usd)) from error

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Whose trial it was."""
        if record.trial is not None:
            self._trials[record.trial] = proposal.key.partition(" ")[2]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_aside(self._file, json.dumps({"trials": self._trials}))

    def expected_usd(self, history: History) -> float:
        """Dollars of one proposal, if all models had the same share."""
        each = [member.expected_usd(history) for member in self._members.values()]
        return sum(each) / len(each)

    def _past(self, name: str, history: History) -> Past:
        rows = [row for row in history.records if row.trial is not None and self._trials.get(row.trial) == name]
        usd = sum(row.cost_usd or 0.0 for row in rows)
        return Past(len(rows), sum(map(kept, rows)), usd, self._members[name].expected_usd(history))

    def _draw(self, history: History, in_flight: Sequence[Proposal], able: int) -> str:
        """Seed of a choice: a session that goes on chooses as it would have."""
        return f"{self._seed} {len(history.records)} {len(in_flight)} {able}"

    def _able(self) -> list[str]:
        now = time.monotonic()
        return [name for name in self._members if name not in self._refused and self._rests.get(name, 0.0) <= now]

    def _without(self, name: str, error: ProviderError) -> None:
        """Overloaded: it rests. Refused: it is out for good."""
        if isinstance(error, ProviderOverloaded):
            self._rests[name] = time.monotonic() + max(error.retry_after, REST_SECONDS)
        else:
            self._refused[name] = error
        others = f"; going on with {', '.join(self._able())}" if self._able() else ""
        self._say(f"{name}: {error}{others}")

    def _nobody(self, spent: float) -> ProviderError:
        """Why there is no proposal: all refused, or some of them rest."""
        resting = [self._rests[name] - time.monotonic() for name in self._members if name not in self._refused]
        if resting:
            return ProviderOverloaded("all models are overloaded", spent, retry_after=max(0.0, min(resting)))
        told = "; ".join(f"{name}: {error}" for name, error in self._refused.items())
        return ProviderRefused(f"all models were refused: {told}", spent)


def _marked(proposal: Proposal, name: str, spent: float = 0.0) -> Proposal:
    return replace(proposal, key=f"{proposal.key} {name}", cost_usd=proposal.cost_usd + spent)


def _again(error: ReplyError, name: str, spent: float = 0.0) -> ReplyError:
    return ReplyError(str(error), proposal=error.proposal and _marked(error.proposal, name, spent))


def _read(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    try:
        return {int(trial): str(name) for trial, name in json.loads(path.read_text())["trials"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise StateError(f"expected the trials of each model in {path}, found: {error}; move it away") from None
