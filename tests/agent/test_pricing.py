"""Dollars: the built-in table, the user's price, and the refusal to guess."""

import pytest

from agent.clients.base import Usage
from agent.clients.pricing import Price, Tariff, price
from agent.errors import UsageError


def test_the_table_charges_cache_reads_and_hour_writes_apart() -> None:
    # claude-opus-4-5: 5 in, 25 out, 0.5 cached, 10 for an entry kept an hour, USD per million tokens.
    usage = Usage(
        input_tokens=3000, cached_tokens=1000, cache_write_tokens=1000, output_tokens=100, hour_write_tokens=1000
    )
    assert price("claude-opus-4-5", "anthropic", usage) == pytest.approx((5 + 0.5 + 10) * 1e-3 + 25e-4)


def test_the_table_knows_hosts_by_their_address() -> None:
    usage = Usage(input_tokens=1_000_000)
    assert price("openai/gpt-oss-120b", "openai", usage, "https://api.groq.com/openai/v1") > 0


@pytest.mark.parametrize(
    ("model", "provider", "base_url"),
    [("gpt-nope", "openai", None), ("claude-nope", "anthropic", None), ("gpt-5", "openai", "http://localhost:8000/v1")],
)
def test_an_unknown_price_stops_before_anything_is_spent(model: str, provider: str, base_url: str | None) -> None:
    with pytest.raises(UsageError, match=r"--price IN,OUT") as caught:
        Tariff(model, provider, base_url).check()
    assert "--price 0,0" in str(caught.value)
    Tariff(model, provider, base_url, Price(0, 0)).check()


def test_an_override_wins_over_the_table() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    assert Tariff("claude-opus-4-5", "anthropic").of(usage) == pytest.approx(30.0)
    assert Tariff("claude-opus-4-5", "anthropic", override=Price(1.0, 2.0)).of(usage) == pytest.approx(3.0)


def test_cached_input_costs_full_price_unless_said() -> None:
    usage = Usage(input_tokens=1_000_000, cached_tokens=1_000_000)
    assert Price(2.0, 0.0).of(usage) == pytest.approx(2.0)
    assert Price(2.0, 0.0, 0.2).of(usage) == pytest.approx(0.2)


def test_a_million_of_anything_is_never_negative() -> None:
    usage = Usage(input_tokens=10, cached_tokens=4, cache_write_tokens=6, output_tokens=0, hour_write_tokens=6)
    assert Price(1.0, 1.0, 0.1).of(usage) == pytest.approx((2.0 * 6 + 0.1 * 4) / 1e6)


@pytest.mark.parametrize(
    ("text", "expected"), [("3,15", Price(3, 15)), ("3,15,0.3", Price(3, 15, 0.3)), (" 0 , 0 ", Price(0, 0))]
)
def test_prices_are_parsed(text: str, expected: Price) -> None:
    assert Price.parse(text) == expected


@pytest.mark.parametrize("text", ["", "3", "3,15,1,1", "a,b", "-1,2", "inf,1", "nan,1", "3;15"])
def test_bad_prices_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--price expects IN,OUT"):
        Price.parse(text)
