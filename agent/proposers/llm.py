"""Proposals from a language model: one conversation for each, kept on disk so that a repair goes on where it was."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import prompt
from agent.clients.base import Client, Conversation, Message, Reply, estimate
from agent.errors import ReplyError
from agent.proposers.opening import opening
from agent.reply import TOOL, ParsedReply, parse_text, parse_tool_call
from agent.values import History, Proposal, Record

KEEP = 16  # conversations on disk; a session has no more trials open at once
USUAL_ANSWER = 3_000  # tokens, thinking included
MAX_PROBLEM = 8_000  # characters of a problem that go back to the model
UNREADABLE = "a reply without readable edits"
AGAIN = (
    "This proposal cannot be used as it is. Correct it and send it again, complete: all its edits, made against the "
    "file as it was first shown to you, because none of them has been applied."
)


@dataclass(frozen=True)
class _Talk:
    """A conversation so far and the sources it is about (path → text)."""

    conversation: Conversation
    sources: Mapping[str, str]


class LLM:
    """Implements agent.values.Proposer for any client. A proposal's key is the name of its conversation."""

    def __init__(self, client: Client, *, program: str, state: Path, name: str = "llm") -> None:
        """program: the brief (program.md). state: a folder of this proposer's own; conversations are kept in it."""
        self.name = name
        self._client = client
        self._program = program
        self._state = state

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """A new proposal. Raise ReplyError (with prompt, reply and cost salvaged) or ProviderError."""
        self._prune()
        first = opening(history, self._program, in_flight)
        return self._exchange(uuid.uuid4().hex[:12], _Talk(first, history.sources), first.as_text())

    def expected_usd(self, history: History) -> float:
        """Dollars of one proposal: this prompt, uncached, and an answer of ordinary length."""
        asked = estimate(opening(history, self._program, ()), "")
        return self._client.price(replace(asked, output_tokens=USUAL_ANSWER))

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """The proposal mended in its conversation, charged for this exchange only; None if that was not kept."""
        talk = self._load(proposal.key)
        if talk is None:
            return None
        said = f"{AGAIN}\n\n{prompt.fence('what is wrong', prompt.tail(problem, MAX_PROBLEM))}"
        answer = Message("user", said, tool_call=talk.conversation.turns[-1].tool_call)
        return self._exchange(proposal.key, replace(talk, conversation=talk.conversation.then(answer)), said)

    def tell(self, proposal: Proposal, record: Record) -> None:
        """The ledger holds what is worth knowing, and `ask` drops old conversations."""

    def _exchange(self, key: str, talk: _Talk, sent: str) -> Proposal:
        reply = self._client.complete(talk.conversation, TOOL)
        self._save(key, replace(talk, conversation=talk.conversation.then(reply.as_message())))
        received = "\n\n".join(filter(None, (reply.text, reply.tool_arguments)))
        cost = reply.cost_usd
        bare = Proposal((), UNREADABLE, proposer=self.name, key=key, prompt=sent, reply=received, cost_usd=cost)
        try:
            parsed = _parse(reply, talk.sources)
        except ReplyError as error:
            raise ReplyError(str(error), proposal=bare) from error
        return replace(
            bare,
            edits=parsed.edits,
            description=parsed.description,
            hypothesis=parsed.hypothesis,
            category=parsed.category,
            insights=parsed.insights,
        )

    def _file(self, key: str) -> Path:
        return self._state / f"conversation-{key}.json"

    def _save(self, key: str, talk: _Talk) -> None:
        """Written aside and renamed: a reader never sees half of it."""
        self._state.mkdir(parents=True, exist_ok=True)
        aside = self._file(key).with_suffix(".tmp")
        aside.write_text(json.dumps({"conversation": talk.conversation.to_json(), "sources": dict(talk.sources)}))
        aside.replace(self._file(key))

    def _load(self, key: str) -> _Talk | None:
        try:
            data = json.loads(self._file(key).read_text())
            return _Talk(Conversation.from_json(data["conversation"]), data["sources"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prune(self) -> None:
        """Drop all but the newest conversations."""
        kept = sorted(self._state.glob("conversation-*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[: -KEEP + 1]:
            path.unlink(missing_ok=True)


def _parse(reply: Reply, sources: Mapping[str, str]) -> ParsedReply:
    if reply.tool_arguments is not None:
        return parse_tool_call(reply.tool_arguments, truncated=reply.truncated)
    return parse_text(reply.text, sources, truncated=reply.truncated)
