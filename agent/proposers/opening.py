"""How a conversation with anything that reads prose begins: the same for a model behind an API and for a program."""

from __future__ import annotations

from collections.abc import Sequence

from agent import prompt
from agent.clients.base import Conversation
from agent.reply import TEXT_FORMAT
from agent.rules import PREPARE_HIDDEN, PREPARE_PUBLIC, RULES
from agent.values import History, Proposal

FIXED = "prepare.py"


def opening(history: History, program: str, in_flight: Sequence[Proposal]) -> Conversation:
    """The prompt of this moment, with the rules that will be enforced and only what a candidate may use of prepare."""
    public = prompt.prepare_public(history.fixed.get(FIXED, ""), _offered)
    return prompt.build(history, program, public, in_flight, text_format=TEXT_FORMAT, rules=tuple(RULES.values()))


def _offered(name: str) -> bool:
    return name not in PREPARE_HIDDEN and (name in PREPARE_PUBLIC or name.isupper())
