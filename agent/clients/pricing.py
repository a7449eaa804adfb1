"""What an exchange costs in US dollars: the user's own price first, then the table that ships with `genai-prices`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import genai_prices

from agent.clients.base import Usage
from agent.errors import UsageError

MILLION = 1_000_000
# Providers that charge for writing their cache ask 1.25 × the input price, and 2 × for an entry kept one hour:
# https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing
CACHE_WRITE = 1.25
CACHE_WRITE_HOUR = 2.0


@dataclass(frozen=True)
class Price:
    """USD per million tokens. `cached` None: cached input costs as much as fresh input."""

    input: float
    output: float
    cached: float | None = None

    @classmethod
    def parse(cls, text: str) -> Price:
        """Read `IN,OUT[,CACHED]`, e.g. `3,15,0.3`."""
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3) or not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise UsageError(
                f"--price expects IN,OUT[,CACHED] in USD per million tokens, e.g. 3,15,0.3; found {text!r}"
            )
        return cls(*numbers)

    def of(self, usage: Usage) -> float:
        cached = self.input if self.cached is None else self.cached
        fresh = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        short = usage.cache_write_tokens - usage.hour_write_tokens
        writes = CACHE_WRITE * short + CACHE_WRITE_HOUR * usage.hour_write_tokens
        total = self.input * (fresh + writes) + cached * usage.cached_tokens + self.output * usage.output_tokens
        return total / MILLION


@dataclass(frozen=True)
class Tariff:
    """What one model costs. `override` wins over the table; `base_url` names a provider that is not the default."""

    model: str
    provider: str
    base_url: str | None = None
    override: Price | None = None

    def check(self) -> None:
        """Raise UsageError before anything is spent if nobody knows the price of this model."""
        self.of(Usage(input_tokens=1, output_tokens=1))

    def of(self, usage: Usage) -> float:
        """USD for one exchange."""
        return self.override.of(usage) if self.override else price(self.model, self.provider, usage, self.base_url)


def price(model: str, provider: str, usage: Usage, base_url: str | None = None) -> float:
    """USD by the table of `genai-prices` (https://github.com/pydantic/genai-prices); UsageError when it has no row.

    provider: an id such as `anthropic`; `base_url`, where given, is looked up instead.
    """
    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.hour_write_tokens,
        output_tokens=usage.output_tokens,
    )
    try:
        if base_url is not None:
            return float(genai_prices.calc_price(counts, model, provider_api_url=base_url).total_price)
        return float(genai_prices.calc_price(counts, model, provider_id=provider).total_price)
    except LookupError:
        raise UsageError(_unknown(model, base_url or provider)) from None


def _unknown(model: str, where: str) -> str:
    return (
        f"no price is known for model {model!r} at {where}, so --max-usd could not be kept: "
        "give --price IN,OUT[,CACHED] in USD per million tokens (--price 0,0 for a model of your own), "
        "or its line under [prices] in overnight.toml"
    )
