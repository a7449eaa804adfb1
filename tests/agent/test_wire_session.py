"""The whole tool against a real HTTP server, over a tiny train.py that keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("model", ["openai:scripted", "anthropic:scripted"])
def test_a_session_with_a_repair_a_crash_a_duplicate_and_a_429(
    data: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("OVERNIGHT_CACHE", str(data.parent.parent))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "benchmarks.wire_session", "--train", "tests/tiny_train.py", "--budget", "20steps"]
    command += ["--model", model]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
