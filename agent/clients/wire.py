"""What the HTTP clients share: bounded bodies, one reading of errors, and JSON that is never trusted to be there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from agent.clients.base import Conversation, Message, Reply, Usage, estimate
from agent.clients.pricing import Tariff
from agent.clients.retry import RetryPolicy, Transient, failure
from agent.errors import ProviderError

CONNECT_SECONDS = 10.0
MAX_BODY_BYTES = 8 << 20  # a whole train.py is some 60 kB, so a reply beyond this is a server gone wrong
EMPTY_TURN = "(no answer)"  # providers refuse turns without text


@dataclass(frozen=True)
class Endpoint:
    """One model at one address. base_url None: the provider's own. timeout: seconds for one try.

    max_output_tokens: tokens a reply may have; Anthropic wants streaming above 21,333, which these clients do not do.
    """

    model: str
    api_key: str = field(repr=False)
    tariff: Tariff
    base_url: str | None = None
    timeout: float = 600.0
    max_output_tokens: int = 20_000
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def failure(self, status: int, headers: Mapping[str, str], message: str, code: str | None = None) -> Exception:
        """The exception for an HTTP status, without the key, should the server have echoed it."""
        return failure(status, headers, message.replace(self.api_key, "***"), code or "")

    def oversized(self, conversation: Conversation) -> Reply:
        """The reply that a dropped, oversized answer leaves: nothing to read, charged for all it may have held."""
        usage = Usage(estimate(conversation, "").input_tokens, output_tokens=self.max_output_tokens)
        cost = self.tariff.of(usage)
        return Reply("", None, None, usage, cost, self.model, truncated=True, stop=f"more than {MAX_BODY_BYTES} bytes")


class Unreadable(Transient):
    """An answer came with status 200, and is cut off, empty or something else."""


def ask(endpoint: Endpoint, conversation: Conversation, send: Callable[[], httpx2.Response]) -> tuple[Any, float]:
    """The body of the first answer that can be read, and dollars of those before it that could not.

    They were billed all the same, for at least what was asked. A ProviderError carries them in its cost_usd.
    """
    asked, unread = endpoint.tariff.of(replace(estimate(conversation, ""), output_tokens=0)), 0

    def attempt() -> dict[str, Any]:
        nonlocal unread
        try:
            return body_of(send())
        except Unreadable:
            unread += 1
            raise

    try:
        return endpoint.policy.run(attempt), asked * unread
    except ProviderError as error:
        error.cost_usd += asked * unread
        raise


class OversizedBody(Exception):
    """More than MAX_BODY_BYTES came; the connection was dropped."""


class _Bounded(httpx2.SyncByteStream):
    """A body that may neither grow beyond MAX_BODY_BYTES nor drip for longer than `seconds`."""

    def __init__(self, inner: httpx2.SyncByteStream, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        seen, deadline = 0, time.monotonic() + self._seconds
        for chunk in self._inner:
            seen += len(chunk)
            if seen > MAX_BODY_BYTES:
                raise OversizedBody
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout(f"the body was still coming after {self._seconds:.0f} s")
            yield chunk

    def close(self) -> None:
        self._inner.close()


def http_client(timeout: float) -> httpx2.Client:
    """An HTTP client for an SDK. timeout: seconds for the answer to begin, and again for its body to end."""

    def bound(response: httpx2.Response) -> None:
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _Bounded(response.stream, timeout)

    limits = httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout))
    # Redirects are not followed: an API key must not travel to an address the user did not name.
    return httpx2.Client(timeout=limits, event_hooks={"response": [bound]}, follow_redirects=False)


def body_of(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object of an answer with status 200. Raise Unreadable when it is none."""
    try:
        body = well_formed(response.json())
    except (ValueError, RecursionError):
        raise Unreadable(f"expected JSON, found {_start(response.text)}; check --base-url") from None
    if not isinstance(body, dict):
        raise Unreadable(f"expected a JSON object, found {_start(response.text)}; check --base-url")
    if body.get("error"):
        raise error_in(body["error"])
    return body


def error_in(error: object) -> Exception:
    """The exception for an `error` member that came with status 200; its code, where it is a number, is a status."""
    fields = error if isinstance(error, Mapping) else {"message": str(error)}
    code, message = fields.get("code"), str(fields.get("message", error))
    if isinstance(code, int) and 400 <= code < 600:
        return failure(code, {}, message)
    return failure(500, {}, message, str(code))


def broken(error: Exception) -> Exception:
    """What a failed connection means: usually that it is worth another try."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, OversizedBody):
        return root
    return Transient(f"no complete answer ({type(root).__name__}: {str(root)[:200] or 'no details'})")


def well_formed(value: Any) -> Any:
    """`value` with every lone surrogate, which JSON may spell and no file can hold, replaced by a question mark."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def one_call(calls: Sequence[str]) -> str:
    """Arguments of several calls made at once (servers of one's own need not know how to forbid that) as one call's.

    The first call says what it is about; the edits of all are its edits. What cannot be read stays the first call.
    """
    try:
        read = [json.loads(call) for call in calls]
        return (
            json.dumps(read[0] | {"edits": [edit for call in read for edit in call["edits"]]}) if read[1:] else calls[0]
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return calls[0]


def count(data: object, *keys: str) -> int:
    """The non-negative integer under nested `keys`, 0 when any of them is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, int) and data > 0 else 0


def dicts(value: object) -> list[dict[str, Any]]:
    """The JSON objects of a list; nothing when it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def plain(turn: Message) -> str:
    """A turn without tools: a call becomes the text of its arguments."""
    return turn.text or (turn.tool_call.arguments if turn.tool_call and turn.role == "assistant" else "") or EMPTY_TURN


def _start(text: str) -> str:
    return repr(text[:80]) if text.strip() else "an empty body"
