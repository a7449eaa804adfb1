"""The knobs as a unit cube, in which one step size suits all of them. Pure.

A constant is a coordinate in [0, 1]: linear, or logarithmic where its range says so. Choices and whole numbers are k
bins of equal width, and a value is the centre of its bin, so that also a pair of choices is left by a step of 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.constants import Choices, Interval, Value, render, rounded
from agent.proposers.axis import Axis

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cube:
    axes: tuple[Axis, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Name and range of each axis, as a person reads them; another range is another axis."""
        return tuple(f"{axis.name} {_range(axis)}" for axis in self.axes)

    @property
    def bins(self) -> tuple[int, ...]:
        """Of each axis, 0 where it is continuous."""
        return tuple(map(bins, self.axes))

    @property
    def now(self) -> Array:
        """Where the incumbent is, (n,)."""
        return self.encode({axis.name: axis.constant.value for axis in self.axes})

    def encode(self, values: Mapping[str, Value]) -> Array:
        """The point with these values, one for each axis: (n,) in [0, 1]."""
        return np.array([_encode(axis, values[axis.name]) for axis in self.axes])

    def decode(self, point: Sequence[float] | Array) -> dict[str, Value]:
        """Name → value that is nearest to a point; floats with four significant digits."""
        return {axis.name: _decode(axis, float(u)) for axis, u in zip(self.axes, point, strict=True)}


def bins(axis: Axis) -> int:
    """How many values it has, 0 for a continuous one. Whole numbers by ratio count as continuous: they are rounded."""
    bounds = axis.range
    if isinstance(bounds, Choices):
        return len(bounds.values)
    return math.floor(bounds.high) - math.ceil(bounds.low) + 1 if bounds.whole and not bounds.log else 0


def spread(axis: Axis, sd: float) -> str:
    """A standard deviation in the cube, in the knob's own unit."""
    bounds, steps = axis.range, bins(axis)
    if isinstance(bounds, Choices):
        return f"{sd * steps:.2g} places in the list"
    if bounds.log:
        return f"a factor of {math.exp(sd * math.log(bounds.high / bounds.low)):.3g}"
    return f"{sd * (steps or bounds.high - bounds.low):.3g}"


def _range(axis: Axis) -> str:
    bounds = axis.range
    if isinstance(bounds, Choices):
        return "|".join(map(render, bounds.values))
    kind = (", whole" if bounds.whole else "") + (", log scale" if bounds.log else "")
    return f"{bounds.low:g}..{bounds.high:g}{kind}"


def _encode(axis: Axis, value: Value) -> float:
    bounds, steps = axis.range, bins(axis)
    if isinstance(bounds, Choices):
        return (bounds.values.index(value) + 0.5) / steps
    assert isinstance(value, int | float), "an interval holds numbers"
    if steps:
        return (value - math.ceil(bounds.low) + 0.5) / steps
    low, high, here = (_scaled(bounds, number) for number in (bounds.low, bounds.high, value))
    return min(1.0, max(0.0, (here - low) / (high - low)))


def _decode(axis: Axis, u: float) -> Value:
    bounds, steps = axis.range, bins(axis)
    place = min(max(math.floor(u * steps), 0), steps - 1)
    if isinstance(bounds, Choices):
        return bounds.values[place]
    if steps:
        return math.ceil(bounds.low) + place
    low, high = _scaled(bounds, bounds.low), _scaled(bounds, bounds.high)
    here = low + min(1.0, max(0.0, u)) * (high - low)
    value = math.exp(here) if bounds.log else here
    value = round(value) if bounds.whole else rounded(value)
    return type(value)(min(bounds.high, max(bounds.low, value)))


def _scaled(bounds: Interval, value: float) -> float:
    return math.log(value) if bounds.log else value
