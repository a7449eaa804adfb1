"""The examples and the code in docs/optimizers run. Examples need the extra `examples`, which `make slow` installs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOG_LINE = re.compile(r"Step (\d+) \| CE=(\d+\.\d{4}) \| ART=\d+\.\d{4} \| Resonated Trace=(-?\d+) \| Sim=-?\d\.\d{4}")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?|nan")

pytestmark = pytest.mark.slow


def python(*args: str, **env: str) -> str:
    """What it prints."""
    command = [sys.executable, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits_learns_and_freezing_saves_backward_flops() -> None:
    pytest.importorskip("sklearn")
    lines = python("-m", "examples.digits", "--steps", "1200").splitlines()
    rows = {line[:20].strip(): [float(cell.rstrip("%")) for cell in line[20:].split()] for line in lines[-3:]}
    assert list(rows) == ["SGD", "adaptive", "adaptive, freezing"]
    for accuracy, *_ in rows.values():
        assert accuracy > 95
    for name in ("SGD", "adaptive"):
        _, _, _, frozen, before, after, mean, saved = rows[name]
        assert (frozen, before, saved) == (0.0, after, 0.0)
        assert mean == before
    _, _, _, frozen, before, after, mean, saved = rows["adaptive, freezing"]
    assert 0 < frozen <= 100
    assert after < mean < before
    assert saved == pytest.approx(100 * (1 - mean / before), abs=0.2)


@pytest.mark.parametrize("flags", [(), ("--ars",)])
def test_gpt2_learns_and_its_hidden_states_resonate(flags: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}  # a closed port, an empty cache
    text = python("-m", "examples.gpt2", "--steps", "60", *flags, **nowhere)
    assert text.startswith("gpt2's weights cannot be had here: a small GPT-2 with random weights, on bytes\n")
    found = [(int(step), float(ce), int(trace)) for step, ce, trace in LOG_LINE.findall(text)]
    assert [step for step, _, _ in found] == [*range(0, 60, 6), 59]
    assert found[-1][1] < found[0][1] - 1
    assert found[0][2] == -1, "nothing to resonate with yet"
    assert any(trace >= 0 for _, _, trace in found)
    assert ("Phi=" in text) == ("--ars" in flags)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "optimizers").glob("*.md")), ids=lambda page: page.stem)
def test_the_code_of_a_page_prints_what_the_page_says(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        printed, shown = python("-c", block).splitlines(), re.findall(r"^# (.*)", block, re.MULTILINE)
        assert printed
        for line, said in zip(printed, shown, strict=True) if shown else ():
            assert NUMBER.sub("n", line) == NUMBER.sub("n", said)
            for found, expected in zip(NUMBER.findall(line), NUMBER.findall(said), strict=True):
                assert close(float(found), float(expected)), line


def close(found: float, expected: float) -> bool:
    """Another machine rounds otherwise, and what explodes or vanishes multiplies it."""
    if 1e-3 < abs(expected) < 1e3:
        return found == pytest.approx(expected, rel=0.2)
    return repr(found) == repr(expected) or 1e-3 < found / expected < 1e3
