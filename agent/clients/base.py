"""What every provider's client speaks: a conversation goes in, a reply with its cost comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class ToolCall:
    """One call of the tool. `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn. An assistant's `tool_call` is the call it made; a user's is the call that `text` answers.

    native: the provider's own blocks of an assistant's turn, sent back verbatim where the provider wants that.
    """

    role: Role
    text: str
    tool_call: ToolCall | None = None
    native: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Conversation:
    """`system`: blocks from the most to the least stable, each a place where a provider's prompt cache may end."""

    system: tuple[str, ...]
    turns: tuple[Message, ...]

    def then(self, *turns: Message) -> Conversation:
        return replace(self, turns=self.turns + turns)

    def as_text(self) -> str:
        """The whole conversation as one text, for a log or for a program that reads a prompt from stdin."""
        turns = [turn.text or (turn.tool_call.arguments if turn.tool_call else "") for turn in self.turns]
        return "\n\n".join((*self.system, *turns))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """Raise ValueError, KeyError or TypeError when `text` was not written by `to_json`."""
        data = json.loads(text)
        return cls(tuple(data["system"]), tuple(_message(turn) for turn in data["turns"]))


def _message(data: Mapping[str, Any]) -> Message:
    call = ToolCall(**data["tool_call"]) if data["tool_call"] else None
    return Message(data["role"], data["text"], call, tuple(data["native"]))


@dataclass(frozen=True)
class Usage:
    """Tokens of one exchange.

    input_tokens: everything sent, cached or not. cached_tokens, cache_write_tokens: the parts of it read from and
    written to the prompt cache. hour_write_tokens: the part of the writes that is kept for an hour, and costs more.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    hour_write_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What came back. `stop` is the provider's own word for why it ended; `truncated` says that it ran out of room."""

    text: str
    tool_arguments: str | None
    tool_call_id: str | None
    usage: Usage
    cost_usd: float
    model: str
    truncated: bool = False
    stop: str = ""
    native: tuple[Mapping[str, Any], ...] = ()

    def as_message(self) -> Message:
        """This reply as the assistant's turn of the conversation that goes on."""
        if self.tool_arguments is None:
            return Message("assistant", self.text, native=self.native)
        return Message("assistant", self.text, ToolCall(self.tool_call_id or "call", self.tool_arguments), self.native)


class Client(Protocol):
    """One model at one provider."""

    model: str

    def complete(self, conversation: Conversation, tool: Mapping[str, Any] | None = None) -> Reply:
        """Send the conversation, offer `tool` (name, description, parameters as JSON schema) if the model can use one.

        Raise ProviderRefused or ProviderOverloaded. A reply without usable content is still a Reply: it was paid for.
        """
        ...

    def price(self, usage: Usage) -> float:
        """USD that an exchange of this size costs."""
        ...

    def close(self) -> None: ...


def estimate(conversation: Conversation, output: str) -> Usage:
    """Tokens of an exchange whose server counted none: one for every three characters, which is on the high side."""
    return Usage(input_tokens=len(conversation.as_text()) // 3 + 1, output_tokens=len(output) // 3 + 1)
