"""Finds the constants of a training script that count on a device, and writes edits that change them. Pure.

The constants block begins at the comment that says "edit these" (else at the top) and ends at the first definition.
In it, upper-case names bound to plain literals are constants. A branch like `if MACHINE.type != "cuda":` is followed on
the devices it is for, so that of two literals with one name the live one is found. What sets a name by other means
(a call, `+=`, an `if` nobody can decide by reading) takes it off the list: its literal may not be what the run sees.

Which values a constant may take, its range, is said behind it or derived from name and value:

    LR = 0.04  # range: 0.005..0.2 log     an interval, here searched by ratio; whole numbers stay whole
    HEAD_DIM = 64  # range: 32|64|128      these values
    EPS = 1e-8  # range: fixed             not a knob, as is anything that no line here speaks of

    bool                                   True|False
    float in [0, 1] named as a share       0..1 (…RATIO, FRAC, FRACTION, SHARE, PROB, DROPOUT)
    float in [0.5, 1), BETA, MOMENTUM, EMA four times to a quarter of its distance from 1
    float > 0                              value/4..value*4 log
    int power of two >= 16                 value/4|value/2|value|value*2|value*4
    int > 0                                value/2..value*2
A range always holds the present value; it is widened where it would not. Whether values fit each other (a device batch
divides the total batch, heads divide the width) is for train.py's own assertions to say.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | None"


@dataclass(frozen=True)
class Interval:
    """low..high, both included; whole: integers only; log: searched by ratio."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choices:
    """One of these values; numbers stand in ascending order."""

    values: tuple[Value, ...]


Range: TypeAlias = Interval | Choices


@dataclass(frozen=True)
class Constant:
    """A live literal on one line. line: from 1. range: None if it is no knob. stated: its range is from a comment."""

    name: str
    value: Value
    line: int
    range: Range | None = None
    stated: bool = False


def find(source: str, device_type: str) -> tuple[Constant, ...]:
    """The constants that count on a `cuda`, `mps` or `cpu` device, by line. SyntaxError for what is not Python."""
    lines = source.split("\n")
    found = []
    for name, node in _live(source, device_type).items():
        value = _literal(node)
        stated = _STATED.search(_around(lines[node.lineno - 1], node)[1].rstrip())
        bounds = _parse_range(stated[1], value) if stated else _derive(name, value)
        found.append(Constant(name, value, node.lineno, bounds and widened(bounds, value), bool(stated)))
    return tuple(sorted(found, key=lambda constant: constant.line))


def rewrite(source: str, device_type: str, values: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """(search, replace) pairs that give these constants these values; those that have theirs already are left out.

    Each SEARCH is whole lines that occur once in `source`, and no two overlap. KeyError for a name that is not live.
    """
    live = _live(source, device_type)
    changed = [name for name, value in values.items() if render(_literal(live[name])) != render(value)]
    old = source.split("\n")
    new = list(old)
    for name in sorted(changed, key=lambda name: -live[name].col_offset):  # from the right, so that columns stay true
        before, behind = _around(new[live[name].lineno - 1], live[name])
        new[live[name].lineno - 1] = before + render(values[name]) + behind
    blocks = _blocks(source, {live[name].lineno - 1 for name in changed})
    return tuple(("\n".join(old[first : last + 1]), "\n".join(new[first : last + 1])) for first, last in blocks)


def render(value: Value) -> str:
    """A literal; floats with at most four significant digits."""
    if isinstance(value, float):
        return repr(rounded(value))
    if isinstance(value, tuple):
        inside = ", ".join(render(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, str) and not re.search(r'["\\]', value) and value.isprintable():
        return f'"{value}"'
    return repr(value)


def rounded(value: float) -> float:
    """To four significant digits, where that does not round it to infinity."""
    short = float(f"{value:.4g}")
    return short if math.isfinite(short) else value


def widened(bounds: Range, value: Value) -> Range:
    """`bounds`, made to hold `value`."""
    if isinstance(bounds, Choices):
        return bounds if value in bounds.values else Choices(_ordered((*bounds.values, value)))
    if not isinstance(value, (int, float)) or (bounds.log and value <= 0):
        return bounds
    return replace(bounds, low=min(bounds.low, value), high=max(bounds.high, value))


_BANNER = re.compile(r"^#.*\bedit these\b", re.IGNORECASE | re.MULTILINE)
_UPPER = re.compile(r"[A-Z][A-Z0-9_]*")


@lru_cache(maxsize=32)  # a proposal asks for the same source many times, and parsing is most of what that takes
def _live(source: str, device_type: str) -> Mapping[str, ast.expr]:
    """Name → the expression that is its value at the end of the block."""
    banner = _BANNER.search(source)
    first = source.count("\n", 0, banner.start()) + 1 if banner else 0
    body = [node for node in ast.parse(source).body if node.lineno > first]
    block = itertools.takewhile(lambda node: not isinstance(node, ast.FunctionDef | ast.ClassDef), body)
    live: dict[str, ast.expr] = {}
    _follow(block, device_type, live)
    return live


def _follow(body: Iterable[ast.stmt], device_type: str, live: dict[str, ast.expr]) -> None:
    for node in body:
        taken = holds(node.test, device_type) if isinstance(node, ast.If) else None
        if isinstance(node, ast.If) and taken is not None:
            _follow(node.body if taken else node.orelse, device_type, live)
            continue
        for name in _bound(node):
            live.pop(name, None)
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(target, ast.Name) and value is not None and _UPPER.fullmatch(target.id) and _is_literal(value):
            live[target.id] = value


def _bound(node: ast.stmt) -> Iterator[str]:
    """Every name that this statement may set."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id


def _around(line: str, node: ast.expr) -> tuple[str, str]:
    """The line before and behind the literal; ast counts its columns in UTF-8 bytes."""
    raw = line.encode()
    return raw[: node.col_offset].decode(), raw[node.end_col_offset or 0 :].decode()


def holds(test: ast.expr, device_type: str) -> bool | None:
    """`X.type == "cuda"` and its relatives (!=, in, not in), decided; None for any other condition."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    if not (isinstance(test.left, ast.Attribute) and test.left.attr == "type" and _is_literal(test.comparators[0])):
        return None
    other = _literal(test.comparators[0])
    match test.ops[0]:
        case ast.Eq():
            return device_type == other
        case ast.NotEq():
            return device_type != other
        case ast.In():
            return isinstance(other, tuple) and device_type in other
        case ast.NotIn():
            return isinstance(other, tuple) and device_type not in other
    return None


def _is_literal(node: ast.expr) -> bool:
    try:
        _literal(node)
    except (ValueError, TypeError):
        return False
    return node.lineno == node.end_lineno


def _literal(node: ast.expr) -> Value:
    """Numbers, strings, None, tuples of them, and the arithmetic people write sizes in: `2**19`, `64 * 1024`."""
    match node:
        case ast.BinOp(left=ast.Constant(value=int(base)), op=ast.Pow(), right=ast.Constant(value=int(exponent))):
            if 0 < base <= 10 and 0 <= exponent < 64:
                return int(base**exponent)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            factors = _literal(left), _literal(right)
            if isinstance(factors[0], int) and isinstance(factors[1], int):
                return factors[0] * factors[1]
    return _checked(ast.literal_eval(node))


def _checked(value: object) -> Value:
    if isinstance(value, tuple):
        return tuple(_checked(item) for item in value)
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("not a plain literal")


_STATED = re.compile(r"#.*?\brange:\s*(.*?)\s*(?:[;#].*)?$")
_INTERVAL = re.compile(r"([^\s.]\S*?)\s*\.\.\s*(\S+)(\s+log)?")
_SHARE = re.compile(r"(?:RATIO|FRAC|FRACTION|SHARE|PROB|DROPOUT)$")
_MEMORY = re.compile(r"BETA|MOMENTUM|EMA")


def _parse_range(text: str, value: Value) -> Range | None:
    try:
        interval = _INTERVAL.fullmatch(text)
        if interval is None:
            return _choices(tuple(_choice(item, value) for item in re.split(r"\s*\|\s*", text)))
        low, high, log = float(interval[1]), float(interval[2]), bool(interval[3])
    except (ValueError, SyntaxError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or (log and min(low, value) <= 0):
        return None
    if not -math.inf < low < high < math.inf:
        return None
    return Interval(low, high, log, whole=isinstance(value, int))


def _choice(text: str, value: Value) -> Value:
    """One value between bars. Strings may go without quotes where the present value is a string."""
    try:
        found = _checked(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        if isinstance(value, str):
            return text
        raise
    return float(found) if isinstance(value, float) and type(found) is int else found


def _choices(values: tuple[Value, ...]) -> Range | None:
    distinct = _ordered(values)
    return Choices(distinct) if len(distinct) > 1 else None


def _ordered(values: tuple[Value, ...]) -> tuple[Value, ...]:
    numbers = [value for value in values if isinstance(value, int | float)]
    return tuple(sorted(set(numbers)) if len(numbers) == len(values) else dict.fromkeys(values))


def _derive(name: str, value: Value) -> Range | None:
    """The table in this file's docstring."""
    if isinstance(value, bool):
        return Choices((False, True))
    if isinstance(value, int):
        return _derive_whole(value)
    if not isinstance(value, float):
        return None
    if _SHARE.search(name) and 0 <= value <= 1:
        return Interval(0.0, 1.0)
    if _MEMORY.search(name) and 0.5 <= value < 1:
        return Interval(rounded(max(0.0, 1 - 4 * (1 - value))), rounded(1 - (1 - value) / 4))
    return Interval(value / 4, value * 4, log=True) if value > 0 else None


def _derive_whole(value: int) -> Range | None:
    if value >= 16 and value & (value - 1) == 0:
        return Choices((value // 4, value // 2, value, value * 2, value * 4))
    return Interval(max(1, value // 2), value * 2, whole=True) if value > 0 else None


def _blocks(source: str, touched: Iterable[int]) -> list[tuple[int, int]]:
    """First and last lines (from 0) around the touched ones: each block's text is unique, and none overlap."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(_unique(source, line) for line in touched):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _unique(source: str, line: int) -> tuple[int, int]:
    """Grown line by line, upwards and downwards in turn: a neighbour tells two equal lines apart."""
    lines, first, last, up = source.split("\n"), line, line, True
    while _count(source, "\n".join(lines[first : last + 1])) > 1:
        if (up and first > 0) or last == len(lines) - 1:
            first -= 1
        else:
            last += 1
        up = not up
    return first, last


def _count(source: str, text: str) -> int:
    """Occurrences, overlapping ones too."""
    return len(re.findall(f"(?={re.escape(text)})", source))
