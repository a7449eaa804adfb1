"""What a child may take, and that it leaves nothing for the next one: on both levels."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent.cell import ADDRESSES, Cell, Job
from agent.machine import Machine
from sandbox.isolation import Isolation, Level, detect
from sandbox.pool import Slot

SLOT = Slot(0, "cpu0")
LEAVE = """
import os
for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"):
    file = os.path.join(os.environ[name], "left-" + name)
    print("found" if os.path.exists(file) else "made")
    os.makedirs(os.environ[name], exist_ok=True)
    open(file, "x").close()
"""
LIMITS = "import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0])"


def printed(code: str, tmp_path: Path, level: Level = Level.PROCESS, device: str = "cpu") -> list[str]:
    """What a child says that runs `code`."""
    isolation = detect() if level is Level.BWRAP else Isolation(level)
    cell = Cell(None, Machine(device, "here", "2", 8.0, "3", 1.0), isolation)
    job = Job(["python", "train.py"], {"train.py": code}, {}, tmp_path / "log", 30)
    done, _ = cell.run(job, tmp_path / "trial", SLOT, threading.Event())
    assert done.ok, done.log_path.read_text()
    return done.log_path.read_text().split()


@pytest.mark.parametrize("level", Level)
def test_no_run_finds_what_another_compiled(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if level is Level.BWRAP and detect().level is not level:
        pytest.skip(f"needs bubblewrap: {detect().why}")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "ours"))
    for _ in range(2):
        assert printed(LEAVE, tmp_path, level) == ["made"] * 4
    assert not list(tmp_path.rglob("left-*"))


@pytest.mark.skipif("sys.platform != 'linux'")
def test_address_space_is_bounded_where_no_group_is_and_never_with_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cell.available", lambda: False)
    assert int(*printed(LIMITS, tmp_path)) > ADDRESSES
    assert printed(LIMITS, tmp_path, device="cuda") == ["-1"]
    monkeypatch.setattr("agent.cell.available", lambda: True)
    assert printed(LIMITS, tmp_path) == ["-1"]
