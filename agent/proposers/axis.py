"""One knob as Optuna sees it: a number, or an index into choices. Numeric choices keep their order. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from agent.constants import Choices, Constant, Interval, Range, Value, render, rounded, widened

LEAST = 0.02  # a smaller step, as a share of the range, would drown in the noise


@dataclass(frozen=True)
class Axis:
    """A constant of the incumbent and the range in which it is searched, which holds the incumbent's value."""

    constant: Constant
    range: Range

    @property
    def name(self) -> str:
        return self.constant.name

    @property
    def key(self) -> str:
        """Optuna's name for it. Another kind of range is another parameter: a study lets none change its kind."""
        if isinstance(self.range, Choices):
            return f"{self.name} {'|'.join(map(render, self.range.values))}"
        return f"{self.name}{' whole' if self.range.whole else ''}{' log' if self.range.log else ''}"

    @property
    def distribution(self) -> BaseDistribution:
        if isinstance(self.range, Interval) and self.range.whole:
            return IntDistribution(int(self.range.low), int(self.range.high), log=self.range.log)
        if isinstance(self.range, Interval):
            return FloatDistribution(self.range.low, self.range.high, log=self.range.log)
        ordered = all(isinstance(value, int | float) for value in self.range.values)
        last = len(self.range.values) - 1
        return IntDistribution(0, last) if ordered else CategoricalDistribution(range(last + 1))

    @property
    def now(self) -> Any:
        """The incumbent's value as Optuna's."""
        return self.encode(self.constant.value)

    def encode(self, value: Value) -> Any:
        """A value of the constant as Optuna's."""
        return self.range.values.index(value) if isinstance(self.range, Choices) else value

    def holds(self, value: Value) -> bool:
        """Whether it is in the range, and of its kind."""
        if isinstance(self.range, Choices):
            return value in self.range.values
        whole = isinstance(value, int) and not isinstance(value, bool)
        right = whole if self.range.whole else isinstance(value, float) or whole
        return right and self.range.low <= float(value) <= self.range.high  # type: ignore[arg-type]

    def decode(self, param: Any) -> Value:
        """Optuna's value as the one to write."""
        if isinstance(self.range, Choices):
            return self.range.values[int(param)]
        return int(param) if self.range.whole else rounded(float(param))

    def moved(self, value: Value) -> bool:
        """Whether `value` is far enough from the incumbent's to be worth a trial."""
        here = self.constant.value
        if not (isinstance(self.range, Interval) and isinstance(here, float) and isinstance(value, float)):
            return value != here
        low, high, a, b = self.range.low, self.range.high, here, value
        if self.range.log:
            low, high, a, b = math.log(low), math.log(high), math.log(a), math.log(b)
        return abs(b - a) >= LEAST * (high - low)

    def step(self, value: Value) -> str:
        return f"{self.name} {render(self.constant.value)} -> {render(value)}"


def settled(constant: Constant, bounds: Range, stored: dict[str, list[Any]]) -> Axis:
    """The axis of a constant: in its stated range, or in the derived range it had when first seen.

    A derived range is a multiple of the value, so without memory the search space would follow the incumbent around.
    stored: name → range as JSON; a range seen for the first time is added to it.
    """
    if constant.stated:
        return Axis(constant, bounds)
    first = _from_json(stored.setdefault(constant.name, _to_json(bounds)))
    return Axis(constant, widened(first, constant.value) if type(first) is type(bounds) else bounds)


def _to_json(bounds: Range) -> list[Any]:
    if isinstance(bounds, Choices):
        return ["choices", *bounds.values]
    return ["interval", bounds.low, bounds.high, bounds.log, bounds.whole]


def _from_json(items: list[Any]) -> Range:
    return Interval(*items[1:]) if items[0] == "interval" else Choices(tuple(items[1:]))
