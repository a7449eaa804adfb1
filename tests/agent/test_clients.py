"""The clients against a real HTTP server that speaks the providers' wire formats, through the real SDKs."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from agent.clients import key_present, make_client, split_model, wire
from agent.clients.anthropic_client import AnthropicClient
from agent.clients.base import Client, Conversation, Message, ToolCall, Usage, estimate
from agent.clients.openai_client import ChatClient, ResponsesClient
from agent.clients.pricing import Price, Tariff
from agent.clients.retry import RetryPolicy, Transient, failure, retry_after
from agent.errors import ProviderOverloaded, ProviderRefused, UsageError
from agent.reply import TOOL
from benchmarks.wire_server import Answer, WireServer, body, cut_off, dripping, huge, slow, status, text, tool

KINDS = {"anthropic": AnthropicClient, "responses": ResponsesClient, "chat": ChatClient}
ARGUMENTS = {"description": "higher lr", "hypothesis": "h", "category": "optimizer", "edits": []}
OPENING = Conversation(("the brief", "the source"), (Message("user", "propose something"),))
PRICE = Price(2.0, 10.0, 0.5)

Connect = Callable[..., tuple[Client, WireServer, list[float]]]


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A client of a kind, the server it talks to, and the waits it asked for (none of them waited)."""
    opened: list[tuple[Client, WireServer]] = []

    def start(kind: str, *replies: Answer, timeout: float = 5.0, attempts: int = 4):
        server = WireServer(replies)
        server.__enter__()
        waits: list[float] = []
        policy = RetryPolicy(attempts=attempts, sleep=waits.append, jitter=lambda: 0.5)
        tariff = Tariff("some-model", "nobody", override=PRICE)
        endpoint = wire.Endpoint("some-model", "key-123", tariff, server.base_url, timeout, 5000, policy)
        client = KINDS[kind](endpoint)
        opened.append((client, server))
        return client, server, waits

    yield start
    for client, server in opened:
        client.close()
        server.__exit__(None, None, None)


def test_a_tool_call_comes_back_with_usage_and_cost(kind: str, connect: Connect) -> None:
    usage = {"fresh": 1000, "cached": 4000, "written": 2000, "output": 300}
    client, server, _ = connect(kind, tool(ARGUMENTS, text="Here it is.", usage=usage))
    reply = client.complete(OPENING, TOOL)
    assert json.loads(reply.tool_arguments or "") == ARGUMENTS
    assert (reply.text, reply.model, reply.truncated) == ("Here it is.", "some-model", False)
    hour = 2000 if kind == "anthropic" else 0
    assert reply.usage == Usage(7000, 4000, 2000, 300, hour)
    writes = 2000 * (2.0 if hour else 1.25)
    assert reply.cost_usd == pytest.approx((2.0 * (1000 + writes) + 0.5 * 4000 + 10.0 * 300) / 1e6)
    assert server.requests[0].has_tools
    assert server.requests[0].prompt.index("the brief") < server.requests[0].prompt.index("propose something")


def test_text_comes_back_when_no_tool_is_offered(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, text("some edits"))
    reply = client.complete(OPENING)
    assert (reply.text, reply.tool_arguments) == ("some edits", None)
    assert not server.requests[0].has_tools


def test_a_repair_goes_on_in_the_same_conversation(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, tool(ARGUMENTS), text("mended"))
    reply = client.complete(OPENING, TOOL)
    called = reply.as_message()
    client.complete(OPENING.then(called, Message("user", "SEARCH not found", called.tool_call)), TOOL)
    sent = server.requests[1].body
    if kind == "anthropic":
        made, answered = sent["messages"][1]["content"][0], sent["messages"][2]["content"][0]
        assert (made["type"], made["id"], made["input"]) == ("tool_use", "toolu_1", ARGUMENTS)
        assert (answered["type"], answered["tool_use_id"]) == ("tool_result", "toolu_1")
    elif kind == "responses":
        made, answered = sent["input"][1:]
        assert (made["type"], made["call_id"], "id" in made) == ("function_call", "call_1", False)
        assert (answered["type"], answered["call_id"]) == ("function_call_output", "call_1")
    else:
        made, answered = sent["messages"][2:]
        assert json.loads(made["tool_calls"][0]["function"]["arguments"]) == ARGUMENTS
        assert (answered["role"], answered["tool_call_id"]) == ("tool", "call_1")
    assert "SEARCH not found" in server.requests[1].prompt


def test_an_empty_answer_can_be_followed_up(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, text(""), text("better"))
    reply = client.complete(OPENING)
    assert (reply.text, reply.tool_arguments) == ("", None)
    assert client.complete(OPENING.then(reply.as_message(), Message("user", "say something"))).text == "better"
    assert wire.EMPTY_TURN in server.requests[1].prompt


def test_truncation_is_reported(kind: str, connect: Connect) -> None:
    client, *_ = connect(kind, text("half a", truncated=True))
    assert client.complete(OPENING).truncated


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(kind: str, connect: Connect, code: int) -> None:
    client, server, waits = connect(kind, status(code), status(code), text("at last"))
    assert client.complete(OPENING).text == "at last"
    assert len(server.requests) == 3
    assert waits == [0.75, 1.5]  # doubling, times a half to one


def test_retry_after_is_honoured(kind: str, connect: Connect) -> None:
    client, _, waits = connect(kind, status(429, retry_after="7"), status(503, retry_after="0"), text("ok"))
    assert client.complete(OPENING).text == "ok"
    assert waits == [7.5, 0.5]


def test_retry_after_as_a_date(kind: str, connect: Connect) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    client, _, waits = connect(kind, status(429, retry_after=when), text("ok"))
    assert client.complete(OPENING).text == "ok"
    assert 25 < waits[0] <= 30.5


def test_a_wait_beyond_patience_is_not_waited(kind: str, connect: Connect) -> None:
    client, server, waits = connect(kind, status(429, retry_after="3600"), text("never asked"))
    with pytest.raises(ProviderOverloaded, match="asked for 3600 s"):
        client.complete(OPENING)
    assert (len(server.requests), waits) == (1, [])


def test_tries_and_waits_are_capped(kind: str, connect: Connect) -> None:
    client, server, waits = connect(kind, *[status(529, "overloaded")] * 20, attempts=9)
    with pytest.raises(ProviderOverloaded, match=r"after 9 tries.*overloaded"):
        client.complete(OPENING)
    assert len(server.requests) == 9
    assert max(waits) <= 60.0


@pytest.mark.parametrize(("code", "advice"), [(400, "--model"), (401, "API key"), (403, "key"), (404, "no such model")])
def test_refusals_are_final_and_give_advice(kind: str, connect: Connect, code: int, advice: str) -> None:
    client, server, _ = connect(kind, status(code, "no, because\nof this"))
    with pytest.raises(ProviderRefused, match=advice) as caught:
        client.complete(OPENING)
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert "because of this" in str(caught.value)


def test_answers_that_cannot_be_read_are_charged_for_what_was_asked(kind: str, connect: Connect) -> None:
    client, _, _ = connect(kind, text("hi"), body(b""), body(b"<html>"), text("hi"), *[body(b"")] * 4)
    plain, after = client.complete(OPENING), client.complete(OPENING)
    asked = client.price(Usage(estimate(OPENING, "").input_tokens, output_tokens=0))
    assert asked > 0
    assert after.cost_usd == pytest.approx(plain.cost_usd + 2 * asked)
    with pytest.raises(ProviderOverloaded) as caught:
        client.complete(OPENING)
    assert caught.value.cost_usd == pytest.approx(4 * asked)


def test_half_a_character_does_not_get_out(kind: str, connect: Connect) -> None:
    client, _, _ = connect(kind, text("an emoji cut in two: \ud83d."))
    assert client.complete(OPENING).text == "an emoji cut in two: ?."


def test_several_calls_at_once_are_one(connect: Connect) -> None:
    first, second = ({**ARGUMENTS, "edits": [{"path": "train.py", "search": n, "replace": "x"}]} for n in "ab")
    client, _, _ = connect("chat", tool(first, more=[second]))
    made = json.loads(client.complete(OPENING, TOOL).tool_arguments or "")
    assert [edit["search"] for edit in made["edits"]] == ["a", "b"]
    assert made["description"] == ARGUMENTS["description"]


def test_an_empty_account_is_a_refusal(connect: Connect) -> None:
    client, server, _ = connect("responses", status(429, "quota exceeded", error_code="insufficient_quota"))
    with pytest.raises(ProviderRefused, match="add credit"):
        client.complete(OPENING)
    assert len(server.requests) == 1


def test_a_redirect_is_refused_and_the_key_stays_home(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, status(307))
    with pytest.raises(ProviderRefused, match="--base-url"):
        client.complete(OPENING)
    assert len(server.requests) == 1


def test_an_echoed_key_is_not_repeated(kind: str, connect: Connect) -> None:
    client, *_ = connect(kind, status(401, "bad key key-123"))
    with pytest.raises(ProviderRefused) as caught:
        client.complete(OPENING)
    assert "key-123" not in str(caught.value)


BROKEN = {
    "cut off": cut_off(),
    "empty": body(b""),
    "html": body(b"<html>a proxy</html>"),
    "half": body(b'{"half": '),
    "list": body(b"[1]"),
    "not utf-8": body(b"\xff\xfe"),
    "deep": body(b"[" * 99_999),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_bodies_are_tried_again(kind: str, connect: Connect, broken: Answer) -> None:
    client, server, _ = connect(kind, broken, text("whole"))
    assert client.complete(OPENING).text == "whole"
    assert len(server.requests) == 2


def test_a_body_that_stays_broken_says_what_was_found(kind: str, connect: Connect) -> None:
    client, *_ = connect(kind, *[body(b"<html>a proxy</html>")] * 9)
    with pytest.raises(ProviderOverloaded, match="expected JSON, found '<html>a proxy"):
        client.complete(OPENING)


def test_an_error_under_status_200_is_read(connect: Connect) -> None:
    overloaded = body(b'{"error": {"code": 429, "message": "upstream is busy"}}')
    refused = body(b'{"error": {"code": 403, "message": "not for you"}}')
    client, server, _ = connect("chat", overloaded, body(b'{"error": "odd"}'), refused)
    with pytest.raises(ProviderRefused, match="not for you"):
        client.complete(OPENING)
    assert len(server.requests) == 3


def test_a_huge_reply_is_dropped_and_charged(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, huge())
    reply = client.complete(OPENING)
    assert (reply.text, reply.truncated) == ("", True)
    assert reply.usage.output_tokens == 5000
    assert reply.cost_usd >= 10.0 * 5000 / 1e6
    assert len(server.requests) == 1


def test_silence_times_out(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, slow(20.0), text("quick"), timeout=0.2)
    assert client.complete(OPENING).text == "quick"
    assert len(server.requests) == 2


def test_dripping_times_out_too(kind: str, connect: Connect) -> None:
    client, server, _ = connect(kind, dripping(0.02), text("quick"), timeout=0.3)
    assert client.complete(OPENING).text == "quick"
    assert len(server.requests) == 2


def test_nobody_listening_is_overload(kind: str, connect: Connect) -> None:
    client, server, waits = connect(kind)
    server.__exit__(None, None, None)
    with pytest.raises(ProviderOverloaded, match="no complete answer"):
        client.complete(OPENING)
    assert len(waits) == 3
    server.__init__([])  # the fixture closes a server that runs
    server.__enter__()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "registry.ollama.ai/library/gemma:latest does not support tools"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (500, "tools param requires --jinja flag"),
        (500, "Unsupported param: tools"),
        (404, "No endpoints found that support tool use. Try disabling tools"),
    ],
)
def test_a_model_without_tools_is_asked_in_text_from_then_on(connect: Connect, code: int, words: str) -> None:
    client, server, _ = connect("chat", status(code, words), text("edits"), text("more edits"))
    assert client.complete(OPENING, TOOL).text == "edits"
    called = Message("assistant", "", ToolCall("x", '{"a": 1}'))
    turns = OPENING.then(called, Message("user", "again", called.tool_call))
    assert client.complete(turns, TOOL).text == "more edits"
    assert [request.has_tools for request in server.requests] == [True, False, False]
    assert [message["role"] for message in server.requests[2].body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_another_400_is_not_taken_for_missing_tools(connect: Connect) -> None:
    client, server, _ = connect("chat", status(400, "temperature is out of range"))
    with pytest.raises(ProviderRefused, match="temperature"):
        client.complete(OPENING, TOOL)
    assert len(server.requests) == 1


def test_missing_usage_is_estimated_on_the_high_side(connect: Connect) -> None:
    client, *_ = connect("chat", text("x" * 300, usage={"none": 1}))
    reply = client.complete(OPENING)
    assert reply.usage.output_tokens == 101
    assert reply.usage.input_tokens > len(OPENING.as_text()) / 4
    assert reply.cost_usd > 0


def test_anthropic_caches_every_system_block_for_an_hour(connect: Connect) -> None:
    client, server, _ = connect("anthropic", text("ok"))
    client.complete(OPENING, TOOL)
    sent = server.requests[0].body
    assert [block["text"] for block in sent["system"]] == ["the brief", "the source"]
    assert all(block["cache_control"] == {"type": "ephemeral", "ttl": "1h"} for block in sent["system"])
    assert sent["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert "key-123" in server.requests[0].headers["authorization"]


def test_anthropic_sends_its_own_blocks_back_verbatim(connect: Connect) -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s1"}
    called = {"type": "tool_use", "id": "toolu_9", "name": "propose", "input": {"a": 1}}
    usage = {"input_tokens": 1, "output_tokens": 1}
    first = {"type": "message", "role": "assistant", "model": "m", "content": [thinking, called], "usage": usage}
    client, server, _ = connect("anthropic", body(json.dumps(first).encode()), text("ok"))
    message = client.complete(OPENING, TOOL).as_message()
    kept = Conversation.from_json(OPENING.then(message).to_json())
    client.complete(kept.then(Message("user", "no", message.tool_call)), TOOL)
    assert server.requests[1].body["messages"][1]["content"] == [thinking, called]


def test_responses_are_stateless(connect: Connect) -> None:
    client, server, _ = connect("responses", text("ok"))
    client.complete(OPENING, TOOL)
    sent = server.requests[0].body
    assert (sent["store"], sent["parallel_tool_calls"], sent["max_output_tokens"]) == (False, False, 5000)
    assert server.requests[0].path == "/v1/responses"


def test_a_callable_reply_reads_the_request(connect: Connect) -> None:
    client, *_ = connect("chat", lambda request: text(request.prompt.upper()))
    assert "PROPOSE SOMETHING" in client.complete(OPENING).text


def test_a_conversation_survives_json() -> None:
    talk = OPENING.then(Message("assistant", "", ToolCall("1", "{}"), ({"type": "x"},)), Message("user", "no"))
    assert Conversation.from_json(talk.to_json()) == talk


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_readings_of_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 413, 422, 451])
def test_every_other_client_error_is_a_refusal(code: int) -> None:
    assert isinstance(failure(code, {}, "x"), ProviderRefused)
    assert isinstance(failure(599, {}, "x"), Transient)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("anthropic:claude-opus-4-5", ("anthropic", "claude-opus-4-5")),
        ("openai:gpt-5", ("openai", "gpt-5")),
        ("claude-opus-4-5", ("anthropic", "claude-opus-4-5")),
        ("llama3:8b", ("openai", "llama3:8b")),
        ("scripted:/a/b.jsonl", ("scripted", "/a/b.jsonl")),
    ],
)
def test_model_strings(model: str, expected: tuple[str, str]) -> None:
    assert split_model(model) == expected


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("model", ["openai:", "", "  ", "anthropic:"])
def test_bad_model_strings(model: str) -> None:
    with pytest.raises(UsageError, match="--model"):
        make_client(model)


@pytest.mark.parametrize(("model", "key"), [("claude-opus-4-5", "ANTHROPIC_API_KEY"), ("gpt-5", "OPENAI_API_KEY")])
def test_a_missing_key_is_one_line(no_keys: pytest.MonkeyPatch, model: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"^{key} is not set"):
        make_client(model)
    assert key_present() == {"ANTHROPIC_API_KEY": False, "OPENAI_API_KEY": False}
    no_keys.setenv(key, "k")
    client = make_client(model)
    client.close()
    assert key_present()[key]


def test_a_server_of_ones_own_needs_a_price_but_no_key(no_keys: pytest.MonkeyPatch) -> None:
    with WireServer([tool(ARGUMENTS), text("hi")]) as server:
        with pytest.raises(UsageError, match="--price 0,0"):
            make_client("gemma3:4b", base_url=server.base_url)
        client = make_client("gemma3:4b", base_url=server.base_url + "/", price=Price(0, 0))
        assert client.complete(OPENING, TOOL).cost_usd == 0.0
        client.close()
        no_keys.setenv("OPENAI_BASE_URL", server.base_url)
        client = make_client("gemma3:4b", prices={"gemma3:4b": Price(1, 1)})
        assert client.complete(OPENING, TOOL).cost_usd > 0.0
        client.close()
        assert {request.path for request in server.requests} == {"/v1/chat/completions"}
        assert server.requests[0].headers["authorization"] == "Bearer not-needed"


def test_anthropic_at_another_address(no_keys: pytest.MonkeyPatch) -> None:
    with WireServer([text("hi")]) as server:
        client = make_client("claude-x", base_url=server.base_url, price=Price(1, 1))
        assert client.complete(OPENING).text == "hi"
        client.close()
        assert server.requests[0].path == "/v1/messages"


@pytest.mark.parametrize("by_variable", [False, True], ids=["flag", "variable"])
@pytest.mark.parametrize(
    ("base_url", "kind", "address"),
    [
        (None, ResponsesClient, "https://api.openai.com/v1/"),
        ("https://api.openai.com/v1", ResponsesClient, "https://api.openai.com/v1/"),
        ("https://api.openai.com/v1/", ResponsesClient, "https://api.openai.com/v1/"),
        ("https://API.openai.com/v1", ResponsesClient, "https://api.openai.com/v1/"),
        ("http://localhost:11434/v1", ChatClient, "http://localhost:11434/v1/"),
        ("https://openrouter.ai/api/v1/", ChatClient, "https://openrouter.ai/api/v1/"),
        ("https://api.anthropic.com/v1", ChatClient, "https://api.anthropic.com/v1/"),
        ("https://api.openai.com.example.org/v1", ChatClient, "https://api.openai.com.example.org/v1/"),
        ("https://example.org/api.openai.com/v1", ChatClient, "https://example.org/api.openai.com/v1/"),
    ],
)
def test_openai_itself_is_asked_for_responses_and_everybody_else_for_chat(
    no_keys: pytest.MonkeyPatch, base_url: str | None, kind: type[Client], address: str, by_variable: bool
) -> None:
    if by_variable:
        no_keys.setenv("OPENAI_BASE_URL", base_url or "")
    client = make_client("openai:m", base_url=None if by_variable else base_url, api_key="k", price=PRICE)
    assert type(client) is kind
    assert str(client._sdk.base_url) == address
    client.close()


def test_the_address_given_wins_over_the_variable(no_keys: pytest.MonkeyPatch) -> None:
    no_keys.setenv("OPENAI_BASE_URL", "http://localhost:11434/v1")
    client = make_client("openai:m", base_url="https://api.openai.com/v1", api_key="k", price=PRICE)
    assert isinstance(client, ResponsesClient)
    assert str(client._sdk.base_url) == "https://api.openai.com/v1/"
    client.close()


def test_a_bad_address_is_one_line(no_keys: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--base-url expects"):
        make_client("gpt-5", base_url="localhost:11434")


def test_the_key_is_not_shown() -> None:
    assert "sk-secret" not in repr(wire.Endpoint("m", "sk-secret", Tariff("m", "p")))


def test_scripted_replies_in_order_across_restarts(tmp_path: Path) -> None:
    script = tmp_path / "replies.jsonl"
    lines = [{"text": "one", "cost_usd": 0.25}, {"tool": ARGUMENTS, "usage": {"input_tokens": 7}}, {"tool": ARGUMENTS}]
    script.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first = make_client(f"scripted:{script}", state=tmp_path / "state").complete(OPENING, TOOL)
    assert (first.text, first.cost_usd) == ("one", 0.25)
    client = make_client(f"scripted:{script}", state=tmp_path / "state")
    second = client.complete(OPENING, TOOL)
    assert json.loads(second.tool_arguments or "") == ARGUMENTS
    assert second.usage.input_tokens == 7
    third = client.complete(OPENING)
    assert (third.tool_arguments, json.loads(third.text)) == (None, ARGUMENTS)
    with pytest.raises(ProviderRefused, match="script ended"):
        client.complete(OPENING, TOOL)
    client.close()


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": "a", "tool": {}}', "{}", '{"text": "a", "usage": {"x": 1}}', "7"]
)
def test_bad_scripts_name_the_line(tmp_path: Path, line: str) -> None:
    script = tmp_path / "replies.jsonl"
    script.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UsageError, match=r"replies.jsonl:2: expected"):
        make_client(f"scripted:{script}")


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="scripted replies"):
        make_client(f"scripted:{tmp_path}/none.jsonl")


def test_a_spoilt_position_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "replies.jsonl").write_text('{"text": "fine"}')
    (tmp_path / "script-position").write_text("many")
    with pytest.raises(UsageError, match="delete the file"):
        make_client(f"scripted:{tmp_path}/replies.jsonl", state=tmp_path)
