"""From settings to the language models that are asked: one, or several among which one is chosen each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from agent.clients import KEYS, make_client
from agent.clients.base import Client
from agent.clients.pricing import Price
from agent.config import Settings
from agent.errors import UsageError
from agent.proposers.llm import LLM
from agent.proposers.team import Team


def client_of(settings: Settings, state: Path) -> Client:
    """Of the first model. state: a folder of its proposer's. UsageError without a model, key or price."""
    if not settings.models:
        raise UsageError(f"llm: expected --model or a key in {' or '.join(KEYS.values())}, found neither")
    return _client(settings.models[0], settings, state)


def make_llm(settings: Settings, *, program: str, state: Path, seed: int, say: Callable[[str], None]) -> LLM | Team:
    """Of the one model, or of all of them. Raise as `client_of` does."""
    if len(settings.models) < 2:
        return LLM(client_of(settings, state), program=program, state=state)
    if settings.price and not any(_bare(model) for model in settings.models):
        raise UsageError("price: expected prices of several models under [prices] in overnight.toml, found --price")
    members = {}
    for model in settings.models:
        folder = state / re.sub(r"[^a-z0-9.]+", "-", model.lower())
        members[model] = LLM(_client(model, settings, folder), program=program, state=folder)
    return Team(members, state=state, seed=seed, say=say)


def _client(model: str, settings: Settings, state: Path) -> Client:
    """--base-url and --price are the only model's; of several, of those named without their provider."""
    ours = len(settings.models) == 1 or _bare(model)
    price = Price.parse(settings.price) if settings.price and ours else None
    prices = {name: Price.parse(str(text)) for name, text in settings.prices.items()}
    return make_client(model, base_url=settings.base_url if ours else None, price=price, prices=prices, state=state)


def _bare(model: str) -> bool:
    """Whether it is named as `qwen3:8b` is, not as `openai:gpt-5.5`."""
    return model.partition(":")[0] not in (*KEYS, "scripted")
