"""The watcher beside a run: what it may not lose, whatever happens to the curve."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from agent.folder import CURVE
from agent.kinds import Kind
from agent.pruner import FEWEST, Curve, Pair, Past, Pruner
from agent.pruning import PRUNING, Looked, Watched, looked_at
from agent.watcher import Watcher

SHARES = tuple(step / 20 for step in range(1, 21))
FLAT = Curve(SHARES, (2.0,) * 20)
LOOKED = Looked(Kind(code=False, pace=False), 0)
PRUNER = Pruner(FLAT, 1.0, [Past(Pair(FLAT, FLAT, 1.0), 0.0)] * FEWEST, 0.01)


def write(run: Path, loss: float) -> None:
    lines = [json.dumps({"progress": share, "loss": loss}) for share in SHARES[:4]]
    (run / CURVE).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("spare", "loss", "ended"), [(False, 4.0, True), (True, 4.0, False), (False, 2.0, False)])
def test_a_hopeless_run_is_ended_unless_it_is_spared(tmp_path: Path, spare: bool, loss: float, ended: bool) -> None:
    write(tmp_path, loss)
    with Watcher(tmp_path, Watched(LOOKED, PRUNER, spare), threading.Event()) as watcher:
        assert watcher.stop.wait(1.0) is ended
    assert bool(watcher.told) is ended
    looked = looked_at(tmp_path) if (tmp_path / PRUNING).exists() else None
    assert (looked is not None and looked.ran_on) is spare


@pytest.mark.parametrize("trouble", ["no curve", "no text", "no folder"])
def test_a_run_can_be_called_off_whatever_became_of_its_curve(tmp_path: Path, trouble: str) -> None:
    run, cancel = tmp_path / "run", threading.Event()
    run.mkdir()
    if trouble == "no text":
        (run / CURVE).write_bytes(b"\xff\xfe no text\n")
    elif trouble == "no folder":
        write(run, 4.0)
        (run / PRUNING).mkdir()  # which nothing can be written over
    with Watcher(run, Watched(LOOKED, PRUNER, spare=False), cancel) as watcher:
        assert not watcher.stop.wait(0.6)
        cancel.set()
        assert watcher.stop.wait(2.0)
    assert watcher.told == ""


def test_a_curve_is_looked_at_again_only_when_its_file_has_changed(tmp_path: Path) -> None:
    run, aside = tmp_path / "run", tmp_path / "aside"
    run.mkdir()
    aside.mkdir()
    write(run, 2.0)
    write(aside, 4.0)
    then = (run / CURVE).stat()
    os.utime(aside / CURVE, ns=(then.st_atime_ns, then.st_mtime_ns))
    with Watcher(run, Watched(LOOKED, PRUNER, spare=False), threading.Event()) as watcher:
        assert not watcher.stop.wait(0.6)
        (aside / CURVE).replace(run / CURVE)  # hopeless, and of the same size and time
        assert not watcher.stop.wait(0.6)
        (run / CURVE).touch()
        assert watcher.stop.wait(2.0)
    assert watcher.told


def test_without_a_pruner_a_run_is_only_called_off(tmp_path: Path) -> None:
    cancel = threading.Event()
    with Watcher(tmp_path, None, cancel) as watcher:
        assert watcher.stop is cancel
