"""A real HTTP server that speaks the wire formats of OpenAI and Anthropic and answers from a script.

It takes the place of a provider in tests, benchmarks and demonstrations: the SDKs, the sockets and the JSON are real,
only the model is not. Formats: https://platform.openai.com/docs/api-reference and https://platform.claude.com/docs/en/api.

    with WireServer([tool({"description": "…", "edits": []}), status(429, retry_after="0"), text("hello")]) as server:
        ...  # --base-url server.base_url
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Recorded:
    """One request as it came in. `headers` in lower case."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """All text of the request, in order, whichever API it was written for."""
        return "\n".join(_strings([self.body.get(key) for key in ("system", "instructions", "messages", "input")]))

    @property
    def has_tools(self) -> bool:
        return bool(self.body.get("tools"))


@dataclass(frozen=True)
class Behaviour:
    """How to answer one request. Use the functions below instead of the constructor."""

    text: str = ""
    arguments: str | None = None  # of a tool call, as JSON text
    usage: Mapping[str, int] = field(default_factory=dict)  # fresh, cached, written, output; {"none": 1} leaves it out
    truncated: bool = False
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # instead of a rendered body
    short_by: int = 0  # bytes announced in Content-Length and never sent
    wait: float = 0.0  # seconds before the answer
    drip: float = 0.0  # seconds between its bytes
    more: Sequence[Mapping[str, Any]] = ()  # arguments of further calls in the same answer (chat completions)


Answer = Behaviour | Callable[[Recorded], Behaviour]
USAGE = {"fresh": 1000, "cached": 0, "written": 0, "output": 100}


def tool(arguments: Mapping[str, Any] | str, text: str = "", **options: Any) -> Behaviour:
    """A call of the first tool that was offered."""
    as_json = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Behaviour(text=text, arguments=as_json, **options)


def text(content: str, **options: Any) -> Behaviour:
    return Behaviour(text=content, **options)


def status(code: int, message: str = "as scripted", retry_after: str | None = None, error_code: str = "") -> Behaviour:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    error = {"type": "error", "error": {"type": "scripted_error", "message": message, "code": error_code or None}}
    return Behaviour(status=code, headers=headers, raw=json.dumps(error).encode())


def cut_off() -> Behaviour:
    """The connection closes in the middle of the body."""
    return Behaviour(text="this sentence never reaches its end", short_by=40)


def body(content: bytes) -> Behaviour:
    """Status 200 and exactly these bytes: an empty body, a proxy's HTML page, half a JSON object."""
    return Behaviour(raw=content)


def huge(megabytes: int = 9) -> Behaviour:
    return Behaviour(text="x" * (megabytes << 20))


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Nothing for `seconds`, then the answer."""
    return Behaviour(**{**vars(then or text("late")), "wait": seconds})


def dripping(seconds: float) -> Behaviour:
    """Headers at once, then one byte every `seconds`."""
    return Behaviour(text="drop by drop", drip=seconds)


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is what several tests want
            super().handle_error(request, client_address)


class WireServer:
    """Answers the n-th request with the n-th item of `replies`; a callable item is given the request first."""

    def __init__(self, replies: Iterable[Answer]) -> None:
        self.requests: list[Recorded] = []
        self._replies: Iterator[Answer] = iter(replies)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Quiet(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    def __enter__(self) -> WireServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: Recorded) -> Behaviour:
        with self._lock:
            self.requests.append(request)
            reply = next(self._replies, status(400, "the script of this server is over"))
            return reply(request) if callable(reply) else reply

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""
        self._closing.wait(seconds)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Recorded(self.path, headers, json.loads(self.rfile.read(length)))
                _send(self, owner, request, owner.answer(request))

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent: a test's output belongs to the test."""

        return Handler


def _send(handler: BaseHTTPRequestHandler, server: WireServer, request: Recorded, behaviour: Behaviour) -> None:
    server.pause(behaviour.wait)
    content = behaviour.raw if behaviour.raw is not None else json.dumps(_render(request, behaviour)).encode()
    handler.send_response(behaviour.status)
    for name, value in {"content-type": "application/json", **behaviour.headers}.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(content) + behaviour.short_by))
    handler.end_headers()
    for piece in [content] if not behaviour.drip else [content[i : i + 1] for i in range(len(content))]:
        handler.wfile.write(piece)
        handler.wfile.flush()
        server.pause(behaviour.drip)
    if behaviour.short_by:
        handler.close_connection = True


def _render(request: Recorded, behaviour: Behaviour) -> dict[str, Any]:
    if request.path.endswith("/chat/completions"):
        return _chat(request, behaviour)
    if request.path.endswith("/responses"):
        return _responses(request, behaviour)
    if request.path.endswith("/messages"):
        return _messages(request, behaviour)
    raise AssertionError(f"no such endpoint: {request.path}")


def _chat(request: Recorded, behaviour: Behaviour) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": behaviour.text or None}
    if behaviour.arguments is not None:
        name = request.body["tools"][0]["function"]["name"]
        calls = [behaviour.arguments, *map(json.dumps, behaviour.more)]
        message["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, arguments in enumerate(calls, 1)
        ]
    stop = "length" if behaviour.truncated else "stop" if behaviour.arguments is None else "tool_calls"
    usage = {**USAGE, **behaviour.usage}
    sent = usage["fresh"] + usage["cached"] + usage["written"]
    reply = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": request.body["model"],
        "choices": [{"index": 0, "finish_reason": stop, "message": message}],
    }
    counts = {
        "prompt_tokens": sent,
        "completion_tokens": usage["output"],
        "total_tokens": sent + usage["output"],
        "prompt_tokens_details": {"cached_tokens": usage["cached"], "cache_write_tokens": usage["written"]},
    }
    return reply if "none" in behaviour.usage else {**reply, "usage": counts}


def _responses(request: Recorded, behaviour: Behaviour) -> dict[str, Any]:
    said = {"type": "output_text", "text": behaviour.text, "annotations": []}
    output: list[dict[str, Any]] = [{"type": "reasoning", "id": "rs_1", "summary": []}]
    if behaviour.text:
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]})
    if behaviour.arguments is not None:
        name = request.body["tools"][0]["name"]
        call = {"id": "fc_1", "call_id": "call_1", "name": name, "arguments": behaviour.arguments}
        output.append({"type": "function_call", "status": "completed", **call})
    usage = {**USAGE, **behaviour.usage}
    sent = usage["fresh"] + usage["cached"] + usage["written"]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "model": request.body["model"],
        "status": "incomplete" if behaviour.truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if behaviour.truncated else None,
        "error": None,
        "output": output,
        "usage": {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": usage["cached"], "cache_write_tokens": usage["written"]},
            "output_tokens": usage["output"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + usage["output"],
        },
    }


def _messages(request: Recorded, behaviour: Behaviour) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": behaviour.text}] if behaviour.text else []
    if behaviour.arguments is not None:
        name = request.body["tools"][0]["name"]
        content.append({"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(behaviour.arguments)})
    stop = "max_tokens" if behaviour.truncated else "end_turn" if behaviour.arguments is None else "tool_use"
    usage = {**USAGE, **behaviour.usage}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": request.body["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage["fresh"],
            "cache_read_input_tokens": usage["cached"],
            "cache_creation_input_tokens": usage["written"],
            "cache_creation": {"ephemeral_1h_input_tokens": usage["written"], "ephemeral_5m_input_tokens": 0},
            "output_tokens": usage["output"],
        },
    }


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("type", "role", "cache_control"):
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
