"""The one retry policy of all providers: what is tried again, how long to wait, and what a refusal tells the user."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from agent.errors import ProviderOverloaded, ProviderRefused

T = TypeVar("T")

# The client errors that pass by themselves; all 5xx do too (529 is Anthropic's "overloaded").
TRANSIENT_STATUSES = frozenset({408, 409, 429})
# A 429 with one of these codes is an empty account, and no waiting fills it.
QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
MAX_MESSAGE = 300  # characters of a provider's own words that are shown

ADVICE = {
    400: "the request itself is wrong for this model; try another --model",
    401: "check the API key in the environment (overnight doctor shows which are set)",
    402: "add credit to the account, or choose another --model",
    403: "this key may not use this model; choose another --model or another key",
    404: "no such model or address; check --model and --base-url",
    413: "the prompt is too long for this model; shorten program.md or choose another --model",
}
ADVICE_REDIRECT = "give the address it redirects to as --base-url"


class Transient(Exception):
    """This attempt failed in a way that may pass. retry_after: seconds the server asked for, None if it did not."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential waits with jitter, at most `attempts` tries. Seconds throughout.

    longest_request: a server that asks for a longer wait than this is not asked again now; the caller backs off.
    """

    attempts: int = 6
    first_wait: float = 1.0
    max_wait: float = 60.0
    longest_request: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def run(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it returns. Raise ProviderOverloaded when it kept raising Transient."""
        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            retry=retry_if_exception(self._worth_another),
            wait=self._wait,
            sleep=self.sleep,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Transient as error:
            raise ProviderOverloaded(self._gave_up(error, retrying), retry_after=error.retry_after or 0.0) from error

    def _worth_another(self, error: BaseException) -> bool:
        return isinstance(error, Transient) and (error.retry_after or 0.0) <= self.longest_request

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Transient) and error.retry_after is not None:
            return error.retry_after + self.jitter()  # never earlier than asked, and not all clients at once
        doubled = self.first_wait * 2.0 ** (state.attempt_number - 1)
        return float(min(self.max_wait, doubled)) * (0.5 + 0.5 * self.jitter())

    def _gave_up(self, error: Transient, retrying: Retrying) -> str:
        tries = retrying.statistics.get("attempt_number", 1)
        asked = "" if error.retry_after is None else f" (it asked for {error.retry_after:.0f} s)"
        return f"the provider did not answer after {tries} tries{asked}: {error}"


def failure(status: int, headers: Mapping[str, str], message: str, code: str = "") -> Transient | ProviderRefused:
    """The exception that an HTTP status deserves. message, code: the provider's own words and error code."""
    said = " ".join(message.split())[:MAX_MESSAGE]
    empty_account = code in QUOTA_CODES
    if (status in TRANSIENT_STATUSES or status >= 500) and not empty_account:
        return Transient(f"HTTP {status}: {said}", retry_after(headers))
    advice = ADVICE[402] if empty_account else ADVICE_REDIRECT if status < 400 else ADVICE.get(status, ADVICE[400])
    return ProviderRefused(f"the provider refused with HTTP {status} ({said}): {advice}")


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that `Retry-After` (or the finer `retry-after-ms`) asks for, None if it says nothing readable.

    Both forms of RFC 9110 §10.2.3: a number of seconds or an HTTP date. A date that has passed is 0.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after", "")
    seconds = _seconds(value)
    return _until(value, now or datetime.now(UTC)) if seconds is None else seconds


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(value: str, now: datetime) -> float | None:
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
