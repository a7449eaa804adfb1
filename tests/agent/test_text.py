"""What is shown of a log whose run ended badly: what was raised, and where, whatever came after it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.text import MESSAGE_LINES, TAIL_LINES, abridged, raised

TABLE = "\\n".join(f"kernel {n}: registered at somewhere.cpp:{n}" for n in range(200))


def log_of(code: str) -> str:
    """What a real interpreter prints for `code`, which raises."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            f"raise NotImplementedError('no kernel for SparseCPU\\n{TABLE}')",
            "NotImplementedError: no kernel for SparseCPU",
        ),
        ("try: 1 / 0\nexcept ZeroDivisionError as e: raise ValueError('second') from e", "ValueError: second"),
        ("print('step 1')\nraise SystemExit('loss is nan')", "loss is nan"),
        ("raise ValueError('\\x1b[31mred\\tand\\nmore')", "ValueError: red and"),
        ("raise SystemExit(1)", "no output"),
    ],
)
def test_what_was_raised(code: str, says: str) -> None:
    assert raised(log_of(code)) == says


def test_a_long_message_loses_its_middle_and_not_the_frames() -> None:
    shown = abridged(log_of(f"def deep():\n    raise ValueError('the reason\\n{TABLE}')\ndeep()")).splitlines()
    assert len(shown) <= TAIL_LINES
    assert any("in deep" in line for line in shown)
    assert "ValueError: the reason" in shown
    assert shown[-1] == "kernel 199: registered at somewhere.cpp:199"
    assert f"[cut: {200 - 2 * MESSAGE_LINES} lines]" in shown


@given(st.text())
def test_any_log_is_one_line_and_a_short_end(log: str) -> None:
    assert raised(log) == "no output" or "\n" not in raised(log)
    lines = log.splitlines()
    if "Traceback" not in log:
        assert abridged(log) == "\n".join(lines[-TAIL_LINES:])
