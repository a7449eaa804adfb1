from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.metrics import Metrics, MetricsError, format_summary, parse_summary

BLOCK = """---
val_bpb:          0.997900
training_seconds: 300.1
total_seconds:    325.9
peak_vram_mb:     45060.2
mfu_percent:      39.80
total_tokens_M:   499.6
num_steps:        953
num_params_M:     50.3
depth:            8
"""
MEASURED = Metrics(0.9979, 300.1, 325.9, 45060.2, 39.8, 499.6, 953, 50.3, 8)


def changed(key: str, value: str) -> str:
    lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in BLOCK.splitlines()]
    return "\n".join(lines) + "\n"


def test_the_block_of_the_design() -> None:
    assert format_summary(MEASURED) == BLOCK
    assert parse_summary(BLOCK) == MEASURED


@pytest.mark.parametrize(
    "log",
    [
        "step 1 loss 5.0\n\x0cstep 2\u2028---\n" + BLOCK,
        BLOCK + "\n  \n\n",
        BLOCK.rstrip("\n"),
        BLOCK.replace("\n", "\r\n"),
        "---\nval_bpb: 0.1\n" + BLOCK,
        BLOCK.replace("0.997900", "0.1") + "more training\n" + BLOCK,
        "\n".join(["---", *reversed(BLOCK.splitlines()[1:])]),
    ],
    ids=["noise before", "blank after", "no newline", "crlf", "broken block before", "whole block before", "any order"],
)
def test_the_last_block_counts(log: str) -> None:
    assert parse_summary(log) == MEASURED


def test_unknown_mfu_is_none() -> None:
    metrics = parse_summary(changed("mfu_percent", "n/a"))
    assert metrics.mfu_percent is None
    assert "mfu_percent:      n/a\n" in format_summary(metrics)


@pytest.mark.parametrize("key", [line.split(":")[0] for line in BLOCK.splitlines()[1:]])
def test_each_key_is_needed_once(key: str) -> None:
    lines = BLOCK.splitlines()
    line = next(line for line in lines if line.startswith(key))
    with pytest.raises(MetricsError, match=f"'{key}: value', found none"):
        parse_summary("\n".join(other for other in lines if other != line))
    with pytest.raises(MetricsError, match=f"expected {key} once"):
        parse_summary("\n".join([*lines, line]))


NO_NUMBER = [
    "",
    "1 2",
    "1,5",
    "1_000",
    "0x10",
    "１２",
    "٣",
    "1.2.3",
    "--1",
    "1e",
    "8 layers",
    "n/a",
    "none",
    "1e99999",
    "8;",
]


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize("key", ["val_bpb", "num_steps"])
def test_what_is_not_one_plain_number_is_refused(key: str, value: str) -> None:
    with pytest.raises(MetricsError, match=f"expected {key} to be one plain") as caught:
        parse_summary(changed(key, value))
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "NaN", "-nan", "inf", "-inf", "Infinity"])
def test_what_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(MetricsError, match="expected a finite val_bpb"):
        parse_summary(changed("val_bpb", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val_bpb", "0.0"),
        ("val_bpb", "-0.9"),
        ("val_bpb", "100.01"),
        ("val_bpb", "1e999"),
        ("training_seconds", "-1"),
        ("total_seconds", "-0.1"),
        ("peak_vram_mb", "-5.0"),
        ("peak_vram_mb", "47249096704"),
        ("mfu_percent", "-1"),
        ("mfu_percent", "1001"),
        ("total_tokens_M", "-3"),
        ("num_steps", "0"),
        ("num_steps", "-7"),
        ("num_params_M", "0"),
        ("num_params_M", "-50.3"),
        ("depth", "0"),
        ("depth", "9999999"),
    ],
)
def test_what_cannot_be_true_is_refused(key: str, value: str) -> None:
    with pytest.raises(MetricsError, match=f"expected {key} (above|at least)") as caught:
        parse_summary(changed(key, value))
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("num_steps", "953.0"), ("depth", "8.0"), ("num_steps", "1e3"), ("depth", "nan")]
)
def test_counts_are_integers(key: str, value: str) -> None:
    with pytest.raises(MetricsError, match=f"expected {key} to be one plain integer"):
        parse_summary(changed(key, value))


@pytest.mark.parametrize(
    "log",
    [
        "",
        "\n\n",
        "Traceback (most recent call last):\nMemoryError\n",
        BLOCK.replace("---\n", ""),
        " " + BLOCK,
        "-" + BLOCK,
    ],
)
def test_a_log_without_a_block_is_refused(log: str) -> None:
    with pytest.raises(MetricsError, match="expected a line '---'"):
        parse_summary(log)


@pytest.mark.parametrize(
    "log",
    [
        BLOCK + "FAIL: loss is nan\n",
        BLOCK + "\nbye\n",
        BLOCK + "val_loss: 1.0\n",
        BLOCK.replace("depth:", "\ndepth:"),
        BLOCK.replace("depth:", " depth:"),
        BLOCK.replace("depth:", "Depth:"),
        BLOCK.replace("depth: ", "depth "),
        BLOCK.replace("val_bpb:", "val_bpb\u2028:"),
    ],
)
def test_nothing_else_may_stand_in_or_after_the_block(log: str) -> None:
    with pytest.raises(MetricsError, match="expected only 'key: value' lines"):
        parse_summary(log)


def test_errors_are_one_short_line() -> None:
    for log in (changed("val_bpb", "9" * 5000), BLOCK + "x" * 5000, "y" * 5000):
        with pytest.raises(MetricsError) as caught:
            parse_summary(log)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


REAL = st.floats(0, 1e7)
MEASUREMENTS = st.builds(
    Metrics,
    val_bpb=st.floats(1e-5, 100),
    training_seconds=REAL,
    total_seconds=REAL,
    peak_vram_mb=REAL,
    mfu_percent=st.none() | st.floats(0, 1000),
    total_tokens_M=REAL,
    num_steps=st.integers(1, 10**12),
    num_params_M=st.floats(1e-6, 1e7),
    depth=st.integers(1, 10**6),
)


@given(MEASUREMENTS, st.text())
def test_what_is_written_is_read_back(metrics: Metrics, noise: str) -> None:
    text = format_summary(metrics)
    read = parse_summary(noise + "\n" + text)
    assert format_summary(read) == text
    assert (read.num_steps, read.depth) == (metrics.num_steps, metrics.depth)
    assert (read.mfu_percent is None) == (metrics.mfu_percent is None)
    assert math.isclose(read.val_bpb, metrics.val_bpb, rel_tol=0.05, abs_tol=5.1e-7)
    assert math.isclose(read.num_params_M, metrics.num_params_M, rel_tol=0.05, abs_tol=0.051)
    assert math.isclose(read.training_seconds, metrics.training_seconds, rel_tol=0.05, abs_tol=0.051)


@given(st.text())
def test_any_text_is_read_or_refused_with_the_one_error(text: str) -> None:
    for log in (text, "---\n" + text, BLOCK + text, changed("val_bpb", text)):
        refusal = ""
        try:
            parse_summary(log)
        except MetricsError as error:
            refusal = str(error)
        assert refusal == "" or refusal.startswith("summary: expected")
