"""One file per LLM provider, and what they share: the retry policy, pricing, and the scripted client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from agent.clients.base import Client
from agent.clients.pricing import Price, Tariff
from agent.clients.retry import RetryPolicy
from agent.clients.wire import Endpoint
from agent.errors import UsageError

KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
BASE_URLS = {"anthropic": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL"}
NO_KEY = "not-needed"  # servers of one's own ask for none, but the SDK insists on a string


def key_present() -> dict[str, bool]:
    """Which API keys the environment holds, by the name of their variable. Never the keys."""
    return {name: bool(os.environ.get(name)) for name in KEYS.values()}


def split_model(model: str) -> tuple[str, str]:
    """(provider, name) of `anthropic:NAME`, `openai:NAME`, `scripted:FILE` or a bare name, by which it is guessed."""
    provider, colon, name = model.partition(":")
    if colon and provider in (*KEYS, "scripted"):
        if not name:
            raise UsageError(f"--model {model!r} names no model: expected {provider}:NAME")
        return provider, name
    if not model.strip():
        raise UsageError("--model is empty: expected anthropic:NAME, openai:NAME or scripted:FILE")
    return ("anthropic" if model.startswith("claude") else "openai"), model  # `llama3:8b` is a name with a colon


def make_client(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
    prices: Mapping[str, Price] | None = None,
    timeout: float = 600.0,
    max_output_tokens: int = 20_000,
    policy: RetryPolicy | None = None,
    state: Path | None = None,
) -> Client:
    """The client for a model string. Raise UsageError for a missing key, an unknown price or a bad address.

    price: of this model, wins over `prices` (by model name), which wins over the built-in table. timeout: seconds for
    one exchange. state: a folder of the proposer's, where the scripted client keeps its place.
    """
    provider, name = split_model(model)
    if provider == "scripted":
        from agent.clients.scripted import ScriptedClient

        return ScriptedClient(Path(name), state / "script-position" if state else None)
    url = _address(base_url or os.environ.get(BASE_URLS[provider]) or None, provider)
    tariff = Tariff(name, provider, url, price or (prices or {}).get(name))
    tariff.check()
    key = api_key or os.environ.get(KEYS[provider]) or (NO_KEY if url else "")
    if not key:
        raise UsageError(f"{KEYS[provider]} is not set: export it, or give --base-url for a server that needs no key")
    policy = policy or RetryPolicy()
    return _connect(provider, Endpoint(name, key, tariff, url, timeout, max_output_tokens, policy))


def _connect(provider: str, endpoint: Endpoint) -> Client:
    # Imported here, because an SDK takes a second to load and a session without it should not wait.
    if provider == "anthropic":
        from agent.clients.anthropic_client import AnthropicClient

        return AnthropicClient(endpoint)
    from agent.clients.openai_client import ChatClient, ResponsesClient

    return ChatClient(endpoint) if endpoint.base_url else ResponsesClient(endpoint)


def _address(base_url: str | None, provider: str) -> str | None:
    """A base URL without its trailing slash; None for the provider's own address, which is the default."""
    if base_url is None:
        return None
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--base-url expects an address such as http://localhost:11434/v1, found {base_url!r}")
    return None if parts.hostname == f"api.{provider}.com" else base_url.rstrip("/")
