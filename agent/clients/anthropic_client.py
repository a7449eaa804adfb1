"""Claude models through the Anthropic SDK: Messages API, native tool use, prompt caching."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anthropic
import httpx2

from agent.clients import wire
from agent.clients.base import Conversation, Message, Reply, Usage, estimate

ANTHROPIC_URL = "https://api.anthropic.com"
# A trial takes longer than the default cache life of five minutes, so an entry must live for an hour to be read again.
CACHE = {"type": "ephemeral", "ttl": "1h"}
TRUNCATED = frozenset({"max_tokens", "model_context_window_exceeded"})


class AnthropicClient:
    """Every block of `Conversation.system` ends at a cache breakpoint (the API allows four)."""

    def __init__(self, endpoint: wire.Endpoint) -> None:
        self.model = endpoint.model
        self._endpoint = endpoint
        http = wire.http_client(endpoint.timeout)
        self._sdk = anthropic.Anthropic(
            api_key=endpoint.api_key,
            base_url=(endpoint.base_url or ANTHROPIC_URL).removesuffix("/v1"),  # the SDK adds the version itself
            timeout=http.timeout,
            max_retries=0,
            http_client=http,
        )
        self._finalizer = weakref.finalize(self, http.close)

    def close(self) -> None:
        self._finalizer()

    def price(self, usage: Usage) -> float:
        return self._endpoint.tariff.of(usage)

    def complete(self, conversation: Conversation, tool: Mapping[str, Any] | None = None) -> Reply:
        request = self._request(conversation, tool)
        try:
            body, unread_usd = wire.ask(self._endpoint, conversation, lambda: self._send(request))
        except wire.OversizedBody:
            return self._endpoint.oversized(conversation)
        reply = self._reply(body, conversation)
        return replace(reply, cost_usd=reply.cost_usd + unread_usd)

    def _request(self, conversation: Conversation, tool: Mapping[str, Any] | None) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._endpoint.max_output_tokens,
            "system": [{"type": "text", "text": block, "cache_control": CACHE} for block in conversation.system],
            "messages": [{"role": turn.role, "content": _content(turn, tool)} for turn in conversation.turns],
        }
        if tool is not None:
            request["tools"] = [
                {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
            ]
            # Not forced: models that think before they answer refuse a forced call.
            request["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        return request

    def _send(self, request: dict[str, Any]) -> httpx2.Response:
        try:
            response = self._sdk.messages.with_raw_response.create(**request)
        except anthropic.APIStatusError as error:
            said = error.api_message or error.message
            raise self._endpoint.failure(error.status_code, error.response.headers, said) from error
        except anthropic.APIConnectionError as error:
            raise wire.broken(error) from error
        return response.http_response

    def _reply(self, body: dict[str, Any], conversation: Conversation) -> Reply:
        blocks = wire.dicts(body.get("content"))
        text = "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
        call = next((block for block in blocks if block.get("type") == "tool_use"), None)
        arguments = None if call is None else json.dumps(call.get("input"))
        usage = _usage(body.get("usage")) or estimate(conversation, text + (arguments or ""))
        stop = str(body.get("stop_reason") or "")
        return Reply(
            text=text,
            tool_arguments=arguments,
            tool_call_id=None if call is None else str(call.get("id")),
            usage=usage,
            cost_usd=self._endpoint.tariff.of(usage),
            model=str(body.get("model") or self.model),
            truncated=stop in TRUNCATED,
            stop=stop,
            native=tuple(block for block in blocks if block.get("type") != "text" or block.get("text")),
        )


def _content(turn: Message, tool: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The blocks of one turn; an assistant's own blocks go back as they came, for a thinking model checks them."""
    if turn.role == "assistant" and turn.native:
        return [dict(block) for block in turn.native]
    if turn.tool_call is None or tool is None:
        return [{"type": "text", "text": wire.plain(turn)}]
    call = turn.tool_call
    if turn.role == "user":
        return [{"type": "tool_result", "tool_use_id": call.id, "content": turn.text, "is_error": True}]
    return [{"type": "tool_use", "id": call.id, "name": tool["name"], "input": json.loads(call.arguments)}]


def _usage(data: object) -> Usage | None:
    """Anthropic counts fresh, cached and written tokens apart; here `input_tokens` is their sum."""
    if not isinstance(data, Mapping):
        return None
    cached = wire.count(data, "cache_read_input_tokens")
    written = wire.count(data, "cache_creation_input_tokens")
    hour = min(written, wire.count(data, "cache_creation", "ephemeral_1h_input_tokens"))
    fresh = wire.count(data, "input_tokens")
    return Usage(fresh + cached + written, cached, written, wire.count(data, "output_tokens"), hour)
