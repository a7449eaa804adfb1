"""How much a run may train, and the clock that says when it is over.

A budget is written `300s` (wall seconds), `2e13flop` (training FLOPs), `50Mtok` (tokens) or `1000steps`
(batches drawn).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_FORM = re.compile(r"(?P<amount>\d+(?:\.\d+)?(?:e[+]?\d+)?)(?P<scale>[kMGT]?)(?P<unit>s|flop|tok|steps)")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Budget:
    """`amount` of `unit`: s (wall seconds), flop, tok or steps."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raise ValueError, with the forms that are understood, for anything else or a budget of nothing."""
        match = _FORM.fullmatch(text.strip())
        amount = float(match["amount"]) * _SCALE[match["scale"]] if match else 0.0
        if match is None or amount <= 0:
            raise ValueError(f"budget: expected e.g. 300s, 2e13flop, 50Mtok or 1000steps, found {text!r}")
        return cls(amount, match["unit"])

    def deadline(self, trained_seconds: float) -> float:
        """Seconds after the end of training within which the checkpoint must have landed."""
        return max(5.0, 0.03 * trained_seconds)


@dataclass(frozen=True)
class Allowance:
    """What start-up and compilation may use before it counts: seconds since the feed opened, random tokens drawn."""

    seconds: float = 300.0
    tokens: int = 1 << 23


class Clock:
    """Counts what a run has used. Starts with the first real batch, or when the allowance for start-up is used up."""

    def __init__(
        self,
        budget: Budget,
        allowance: Allowance,
        flop_per_token: float | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget, self.allowance, self.flop_per_token, self.now = budget, allowance, flop_per_token, now
        self.opened = now()
        self.started: float | None = None
        self.ended: float | None = None
        self.sealed: float | None = None
        self.drawn: float | None = None  # when the last batch was
        self.longest = 0.0  # seconds between two draws
        self.tokens = 0
        self.steps = 0
        self.warm_tokens = 0
        self.warm_steps = 0  # of those beyond the allowance

    def spent(self) -> float:
        """In the budget's own unit."""
        charged = self.tokens + max(0, self.warm_tokens - self.allowance.tokens)
        match self.budget.unit:
            case "s":
                return self.seconds()
            case "tok":
                return float(charged)
            case "flop":
                return charged * (self.flop_per_token or 0.0)
            case _:
                return float(self.steps + self.warm_steps)

    def seconds(self) -> float:
        """Wall seconds of training so far."""
        if self.started is None:
            return 0.0
        return (self.now() if self.ended is None else self.ended) - self.started

    def progress(self) -> float:
        return min(1.0, self.spent() / self.budget.amount)

    def draw(self, tokens: int) -> bool:
        """Charge one batch; False when the budget is used up, from then on for ever."""
        if self.started is None:
            self.started = min(self.now(), self.opened + self.allowance.seconds)
        if self.ended is None and self.spent() >= self.budget.amount:
            self.ended = self._over()
        if self.ended is not None:
            return False
        now = self.now()
        self.longest = max(self.longest, now - (now if self.drawn is None else self.drawn))
        self.drawn = now
        self.tokens += tokens
        self.steps += 1
        return True

    def warm(self, tokens: int) -> None:
        self.warm_tokens += tokens
        if self.warm_tokens > self.allowance.tokens:
            self.warm_steps += 1
            self.started = self.now() if self.started is None else self.started

    def seal(self) -> None:
        """The checkpoint has landed. Training that stops before its budget is over ends here too."""
        self.sealed = self.now()
        if self.ended is None:
            self.ended = self._over()

    def _over(self) -> float:
        """When training ended, for one that draws the end now or not at all.

        It may have gone on with batches drawn before: in seconds the budget ends that; else it ended with the last
        batch, which is given as long as any batch before it took.
        """
        now = self.now()
        if self.budget.unit == "s":
            return now if self.started is None else min(now, self.started + self.budget.amount)
        return now if self.drawn is None or self.steps < 2 else min(now, self.drawn + self.longest)
