"""A client whose replies come from a file: for dry runs, examples and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.clients.base import Conversation, Reply, Usage, estimate
from agent.errors import ProviderRefused, UsageError


class ScriptedClient:
    """Answers with the lines of a JSONL file, one after another.

    A line is `{"text": "…"}` or `{"tool": {…arguments…}}`, optionally with `"usage": {"input_tokens": 1, …}` (the
    fields of Usage), `"cost_usd": 0.01` and `"truncated": true`. `position`: a file that keeps how many lines were
    used, so that a resumed session goes on after the last one.
    Nothing is charged unless the file says so.
    """

    def __init__(self, script: Path, position: Path | None = None) -> None:
        self.model = f"scripted:{script}"
        self._replies = _read(script)
        self._position = position
        self._next = _number(position)

    def complete(self, conversation: Conversation, tool: Mapping[str, Any] | None = None) -> Reply:
        if self._next >= len(self._replies):
            raise ProviderRefused(f"script ended: {self.model} has {len(self._replies)} replies; add lines to go on")
        reply = self._replies[self._next]
        self._next += 1
        self._save()
        if tool is None and reply.tool_arguments is not None:  # a model without tools can only write
            reply = replace(reply, text=reply.tool_arguments, tool_arguments=None, tool_call_id=None)
        counted = reply.usage != Usage()
        return reply if counted else replace(reply, usage=estimate(conversation, reply.text))

    def price(self, usage: Usage) -> float:
        """Nothing: what the file charges is known when it is read."""
        return 0.0 * usage.input_tokens

    def _save(self) -> None:
        if self._position is not None:
            self._position.parent.mkdir(parents=True, exist_ok=True)
            self._position.write_text(f"{self._next}\n")

    def close(self) -> None:
        """Nothing is held open."""


def _read(script: Path) -> tuple[Reply, ...]:
    try:
        lines = script.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected a file of scripted replies at {script}: {error}") from None
    return tuple(_reply(line, f"{script}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def _reply(line: str, where: str) -> Reply:
    try:
        data = json.loads(line)
        if ("text" in data) == ("tool" in data):
            raise ValueError("exactly one of them is needed")
        usage = Usage(**data.get("usage", {}))
        cost, truncated = float(data.get("cost_usd", 0.0)), bool(data.get("truncated", False))
    except (ValueError, TypeError, AttributeError) as error:
        expected = '{"text": …} or {"tool": {…}}'
        raise UsageError(f"{where}: expected {expected}, found {line[:80]!r} ({error})") from None
    if "text" in data:
        return Reply(str(data["text"]), None, None, usage, cost, "scripted", truncated)
    return Reply("", json.dumps(data["tool"]), "scripted", usage, cost, "scripted", truncated)


def _number(position: Path | None) -> int:
    if position is None or not position.exists():
        return 0
    text = position.read_text().strip()
    if not text.isdigit():
        raise UsageError(f"expected the number of used replies in {position}, found {text[:40]!r}: delete the file")
    return int(text)
