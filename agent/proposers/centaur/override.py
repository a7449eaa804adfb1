"""From what a model sent to the values that it wants for the knobs: a call of `set_knobs`, or JSON in text. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.clients.base import Reply
from agent.constants import Choices, Interval, Value, render, rounded
from agent.errors import ReplyError
from agent.proposers.axis import Axis
from agent.proposers.cube import Cube
from agent.text import one_line

MAX_WHY = 1_000  # characters

TOOL: dict[str, Any] = {
    "name": "set_knobs",
    "description": "Say with which values of the knobs the next trial is to run.",
    "parameters": {
        "type": "object",
        "properties": {
            "knobs": {
                "type": "object",
                "description": "Name to value, within its bounds. Knobs left out keep the suggested value.",
            },
            "why": {"type": "string", "description": "One sentence: why this is better than what is suggested."},
        },
        "required": ["knobs", "why"],
        "additionalProperties": False,
    },
}
TEXT_FORMAT = '{"knobs": {"NAME": value, "NAME": value}, "why": "one sentence"}'
ADVICE = f"send {TEXT_FORMAT}, with names and bounds as they were listed"


@dataclass(frozen=True)
class Override:
    """The knobs that are to have another value than the suggested one."""

    values: Mapping[str, Value]
    why: str


def read(reply: Reply, cube: Cube) -> Override:
    """Raise ReplyError saying what to send instead."""
    if reply.truncated:
        raise ReplyError(f"the reply was cut off at the length limit: {ADVICE}")
    call = _object(reply.text if reply.tool_arguments is None else reply.tool_arguments)
    knobs = call.get("knobs")
    if not isinstance(knobs, Mapping):
        raise ReplyError(f"expected an object as `knobs`, found {str(knobs)[:80]!r}: {ADVICE}")
    axes = {axis.name: axis for axis in cube.axes}
    unknown = sorted(map(str, knobs.keys() - axes.keys()))
    if unknown:
        raise ReplyError(f"expected knobs among {', '.join(axes)}, found {', '.join(unknown)[:200]}")
    values = {name: _value(axes[name], value) for name, value in knobs.items()}
    return Override(values, one_line(str(call.get("why") or ""))[:MAX_WHY])


def _object(text: str) -> Mapping[str, Any]:
    """The first JSON object in a text that speaks of knobs."""
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, Mapping) and "knobs" in found:
            return found
        start = text.find("{", start + 1)
    raise ReplyError(f"expected a JSON object with `knobs`, found {len(text)} characters without one: {ADVICE}")


def _value(axis: Axis, found: object) -> Value:
    bounds = axis.range
    value = _choice(bounds, found) if isinstance(bounds, Choices) else _number(bounds, found)
    if value is None:
        allowed = " or ".join(map(render, bounds.values)) if isinstance(bounds, Choices) else _told(bounds)
        raise ReplyError(f"{axis.name}: expected {allowed}, found {str(found)[:80]!r}")
    return value


def _choice(bounds: Choices, found: object) -> Value | None:
    """By value; `True` is no 1; what has no JSON, such as a tuple, by how it is written."""
    alike = (value for value in bounds.values if value == found and isinstance(value, bool) == isinstance(found, bool))
    return next(
        alike, next((value for value in bounds.values if isinstance(found, str) and render(value) == found), None)
    )


def _number(bounds: Interval, found: object) -> Value | None:
    """nan is in no interval."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not bounds.low <= found <= bounds.high:
        return None
    if bounds.whole:
        return int(found) if found == int(found) else None
    return min(bounds.high, max(bounds.low, rounded(float(found))))


def _told(bounds: Interval) -> str:
    return f"a{' whole' if bounds.whole else ''} number in {bounds.low:g}..{bounds.high:g}"
