"""The summary block a training run ends with, read strictly: a number that cannot be right is an error, never a score.

    ---
    val_bpb:          0.997900
    training_seconds: 300.1
    ...

The field shares this format, so other tools can read our logs and we theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

RULE = "---"
UNKNOWN = "n/a"

# ASCII digits on purpose: int() and float() also take '１２', '1_000', ' 5 ' and 'infinity', and the log is not ours.
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9_]*):[ \t]*(.*)")


class MetricsError(ValueError):
    """The log does not end in a summary that can be believed. One line, naming the key and what was found."""


@dataclass(frozen=True)
class Metrics:
    """What one run of the training script measured.

    val_bpb: validation bits per byte. training_seconds: inside the budget; total_seconds: start-up and scoring too.
    peak_vram_mb: MiB, resident memory on a CPU. mfu_percent: of the device's peak FLOP/s, None when unknown.
    total_tokens_M, num_params_M: millions. depth: transformer layers.
    """

    val_bpb: float
    training_seconds: float
    total_seconds: float
    peak_vram_mb: float
    mfu_percent: float | None
    total_tokens_M: float
    num_steps: int
    num_params_M: float
    depth: int


@dataclass(frozen=True)
class _Field:
    """How one value is written and in which bounds it can be true; `positive` leaves the lower bound itself out."""

    decimals: int | None  # None: an integer
    low: float
    high: float
    positive: bool = False


# Upper bounds are far beyond any real run; they catch values in the wrong unit (bytes for MiB, tokens for millions).
_FIELDS: Mapping[str, _Field] = {
    "val_bpb": _Field(6, 0, 100, positive=True),
    "training_seconds": _Field(1, 0, 1e8),
    "total_seconds": _Field(1, 0, 1e8),
    "peak_vram_mb": _Field(1, 0, 1e8),
    "mfu_percent": _Field(2, 0, 1000),
    "total_tokens_M": _Field(1, 0, 1e9),
    "num_steps": _Field(None, 1, 1e12),
    "num_params_M": _Field(1, 0, 1e8, positive=True),
    "depth": _Field(None, 1, 1e6),
}


def parse_summary(text: str) -> Metrics:
    """Read the last summary block of a log; nothing but blank lines may follow it. Raises MetricsError."""
    values = _read_lines(_last_block(text))
    for key in _FIELDS:
        if key not in values:
            raise MetricsError(f"summary: expected a line '{key}: value', found none")
    return Metrics(
        val_bpb=_decimal("val_bpb", values),
        training_seconds=_decimal("training_seconds", values),
        total_seconds=_decimal("total_seconds", values),
        peak_vram_mb=_decimal("peak_vram_mb", values),
        mfu_percent=None if values["mfu_percent"] == UNKNOWN else _decimal("mfu_percent", values),
        total_tokens_M=_decimal("total_tokens_M", values),
        num_steps=_integer("num_steps", values),
        num_params_M=_decimal("num_params_M", values),
        depth=_integer("depth", values),
    )


def _last_block(text: str) -> list[str]:
    # split on "\n" only: str.splitlines also breaks at form feeds and U+2028, which a terminal shows inside a line
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    starts = [number for number, line in enumerate(lines) if line == RULE]
    if not starts:
        last = lines[-1][:120] if lines else ""
        raise MetricsError(f"summary: expected a line '{RULE}' and the results after it, found none; log ends {last!r}")
    return lines[starts[-1] + 1 :]


def _read_lines(lines: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in _FIELDS:
            raise MetricsError(f"summary: expected only 'key: value' lines to the end of the log, found {line[:120]!r}")
        key, value = match[1], match[2]
        if key in values:
            raise MetricsError(f"summary: expected {key} once, found it again with {value[:60]!r}")
        values[key] = value
    return values


def _decimal(key: str, values: Mapping[str, str]) -> float:
    text = values[key]
    if _NOT_FINITE.fullmatch(text):
        raise MetricsError(f"summary: expected a finite {key}, found {text!r}")
    if not _DECIMAL.fullmatch(text):
        raise MetricsError(f"summary: expected {key} to be one plain number, found {text[:60]!r}")
    _refuse_absurd(key, text, float(text))
    return float(text)


def _integer(key: str, values: Mapping[str, str]) -> int:
    text = values[key]
    if not _INTEGER.fullmatch(text):
        raise MetricsError(f"summary: expected {key} to be one plain integer, found {text[:60]!r}")
    _refuse_absurd(key, text, int(text))
    return int(text)


def _refuse_absurd(key: str, text: str, value: float) -> None:
    rule = _FIELDS[key]
    if rule.low <= value <= rule.high and not (rule.positive and value == rule.low):
        return
    above = "above" if rule.positive else "at least"
    raise MetricsError(f"summary: expected {key} {above} {rule.low:g} and at most {rule.high:g}, found {text[:60]!r}")


def format_summary(metrics: Metrics) -> str:
    """The block as `parse_summary` reads it, from the rule to the last newline."""
    lines = [f"{key + ':':<18}{_shown(getattr(metrics, key), rule)}" for key, rule in _FIELDS.items()]
    return "\n".join([RULE, *lines]) + "\n"


def _shown(value: float | int | None, rule: _Field) -> str:
    if value is None:
        return UNKNOWN
    if rule.decimals is None:
        return f"{value:d}"
    short = f"{value:.{rule.decimals}f}"
    # a model of 20,000 parameters is not a model of none
    return short if value == 0 or float(short) != 0 else f"{value:.1e}"
