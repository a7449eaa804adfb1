"""Two ways through the OpenAI SDK: the Responses API of OpenAI itself, and chat completions at any other address."""

from __future__ import annotations

import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2
import openai

from agent.clients import wire
from agent.clients.base import Conversation, Message, Reply, Usage, estimate

OPENAI_URL = "https://api.openai.com/v1"
# How servers say that a model has no tool use: Ollama, vLLM (400), llama.cpp (500), OpenRouter (404).
NO_TOOLS = re.compile(
    r"not support\w* tool|support tool use|\btools?\b.{0,40}(not support|requires)|unsupported param: tools", re.I
)
NO_TOOLS_STATUSES = frozenset({400, 404, 422, 500, 501})


class NoTools(Exception):
    """The server says that this model cannot use tools."""


class _OpenAI(ABC):
    """What both ways share: the SDK with its own retries off, one policy, and tools given up once they were refused."""

    def __init__(self, endpoint: wire.Endpoint) -> None:
        self.model = endpoint.model
        self._endpoint = endpoint
        self._tools = True
        http = wire.http_client(endpoint.timeout)
        self._sdk = openai.OpenAI(
            api_key=endpoint.api_key,
            base_url=endpoint.base_url or OPENAI_URL,
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
        try:
            return self._complete(conversation, tool if self._tools else None)
        except NoTools:
            self._tools = False  # for good; the prompt describes the text form as well, so nothing else changes
            return self._complete(conversation, None)

    def _complete(self, conversation: Conversation, tool: Mapping[str, Any] | None) -> Reply:
        request = self._request(conversation, tool)
        try:
            body, unread_usd = wire.ask(self._endpoint, conversation, lambda: self._send(request))
        except wire.OversizedBody:
            return self._endpoint.oversized(conversation)
        reply = self._reply(body, conversation)
        return replace(reply, cost_usd=reply.cost_usd + unread_usd)

    def _send(self, request: dict[str, Any]) -> httpx2.Response:
        try:
            response: httpx2.Response = self._create(request).http_response
        except openai.APIStatusError as error:
            status, headers = error.status_code, error.response.headers
            if "tools" in request and status in NO_TOOLS_STATUSES and NO_TOOLS.search(error.message):
                raise NoTools from error
            raise self._endpoint.failure(status, headers, error.message, error.code) from error
        except openai.APIConnectionError as error:
            raise wire.broken(error) from error
        return response

    def _priced(self, usage: Usage | None, conversation: Conversation, output: str) -> tuple[Usage, float]:
        usage = usage or estimate(conversation, output)
        return usage, self._endpoint.tariff.of(usage)

    @abstractmethod
    def _create(self, request: dict[str, Any]) -> Any: ...

    @abstractmethod
    def _request(self, conversation: Conversation, tool: Mapping[str, Any] | None) -> dict[str, Any]: ...

    @abstractmethod
    def _reply(self, body: dict[str, Any], conversation: Conversation) -> Reply: ...


class ResponsesClient(_OpenAI):
    """OpenAI's Responses API, stateless: nothing is stored there, the whole conversation is sent every time."""

    def _create(self, request: dict[str, Any]) -> Any:
        return self._sdk.responses.with_raw_response.create(**request)

    def _request(self, conversation: Conversation, tool: Mapping[str, Any] | None) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "instructions": "\n\n".join(conversation.system),
            "input": [item for turn in conversation.turns for item in _items(turn, tool)],
            "max_output_tokens": self._endpoint.max_output_tokens,
            "store": False,
        }
        if tool is not None:
            request["tools"] = [{"type": "function", "strict": False, **_function(tool)}]
            request["parallel_tool_calls"] = False
        return request

    def _reply(self, body: dict[str, Any], conversation: Conversation) -> Reply:
        items = wire.dicts(body.get("output"))
        parts = [part for item in items if item.get("type") == "message" for part in wire.dicts(item.get("content"))]
        text = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
        call = next((item for item in items if item.get("type") == "function_call"), None)
        arguments = None if call is None else str(call.get("arguments") or "")
        usage, cost = self._priced(
            _usage(body.get("usage"), "input_tokens", "output_tokens", "input_tokens_details"),
            conversation,
            text + (arguments or ""),
        )
        incomplete = body.get("incomplete_details") or {}
        return Reply(
            text=text,
            tool_arguments=arguments,
            tool_call_id=None if call is None else str(call.get("call_id")),
            usage=usage,
            cost_usd=cost,
            model=str(body.get("model") or self.model),
            truncated=incomplete.get("reason") == "max_output_tokens",
            stop=str(incomplete.get("reason") or body.get("status") or ""),
        )


class ChatClient(_OpenAI):
    """Chat completions, as Ollama, vLLM, llama.cpp and most hosts speak them."""

    def _create(self, request: dict[str, Any]) -> Any:
        return self._sdk.chat.completions.with_raw_response.create(**request)

    def _request(self, conversation: Conversation, tool: Mapping[str, Any] | None) -> dict[str, Any]:
        system = {"role": "system", "content": "\n\n".join(conversation.system)}
        # No limit on the output: small servers refuse one that does not fit beside the prompt, and stop by themselves.
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [system, *(_chat_message(turn, tool) for turn in conversation.turns)],
        }
        if tool is not None:
            request["tools"] = [{"type": "function", "function": _function(tool)}]
        return request

    def _reply(self, body: dict[str, Any], conversation: Conversation) -> Reply:
        choice = next(iter(wire.dicts(body.get("choices"))), {})
        message = choice.get("message") or {}
        text = str(message.get("content") or message.get("refusal") or "")
        calls = wire.dicts(message.get("tool_calls"))
        call = next(iter(calls), None)
        made = [str((one.get("function") or {}).get("arguments") or "") for one in calls]
        arguments = wire.one_call(made) if made else None
        usage, cost = self._priced(
            _usage(body.get("usage"), "prompt_tokens", "completion_tokens", "prompt_tokens_details"),
            conversation,
            text + (arguments or ""),
        )
        stop = str(choice.get("finish_reason") or "")
        return Reply(
            text=text,
            tool_arguments=arguments,
            tool_call_id=None if call is None else str(call.get("id") or "call"),
            usage=usage,
            cost_usd=cost,
            model=str(body.get("model") or self.model),
            truncated=stop == "length",
            stop=stop,
        )


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tool[key] for key in ("name", "description", "parameters")}


def _items(turn: Message, tool: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A turn as input items of the Responses API."""
    call = turn.tool_call
    if call is None or tool is None:
        return [{"role": turn.role, "content": wire.plain(turn)}]
    if turn.role == "user":
        return [{"type": "function_call_output", "call_id": call.id, "output": turn.text}]
    said = [{"role": "assistant", "content": turn.text}] if turn.text else []
    # Without the item's own id: with it the API would want the reasoning item that preceded it.
    made = {"type": "function_call", "call_id": call.id, "name": tool["name"], "arguments": call.arguments}
    return [*said, made]


def _chat_message(turn: Message, tool: Mapping[str, Any] | None) -> dict[str, Any]:
    call = turn.tool_call
    if call is None or tool is None:
        return {"role": turn.role, "content": wire.plain(turn)}
    if turn.role == "user":
        return {"role": "tool", "tool_call_id": call.id, "content": turn.text}
    function = {"name": tool["name"], "arguments": call.arguments}
    calls = [{"id": call.id, "type": "function", "function": function}]
    return {"role": "assistant", "content": turn.text, "tool_calls": calls}


def _usage(data: object, sent: str, received: str, details: str) -> Usage | None:
    """Both APIs count cached and written tokens inside the input; only the names differ. None: nothing was counted."""
    if not wire.count(data, sent):
        return None
    return Usage(
        input_tokens=wire.count(data, sent),
        cached_tokens=min(wire.count(data, sent), wire.count(data, details, "cached_tokens")),
        cache_write_tokens=wire.count(data, details, "cache_write_tokens"),
        output_tokens=wire.count(data, received),
    )
