"""A portfolio that is killed with -9, twice, and taken up: every proposer goes on where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from agent.ledger import read
from agent.proposers.evolve.archive import load
from agent.values import Record
from benchmarks.wire_session import project as tiny_project

ROOT = Path(__file__).parents[2]
TRIALS = 8


def run(project: Path, gone: Callable[[], bool] | None = None) -> str:
    """The session until it ends, or dies as soon as `gone`. What it printed."""
    command = [sys.executable, "-m", "agent", "run", "--tag", "t", "--proposer", "portfolio", "--judge", "greedy"]
    command += ["--budget", "20steps", "--experiments", str(TRIALS)]
    log = project.parent / "log"
    with log.open("w") as file:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(command, cwd=project, env=env, stdout=file, stderr=file)
        deadline = time.monotonic() + 240
        while child.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            if gone is not None and gone():
                child.kill()
            time.sleep(0.02)
    assert child.returncode == (0 if gone is None else -9), log.read_text()
    return log.read_text()


def rows(project: Path) -> list[Record]:
    ledger = project / ".overnight" / "t" / "results.tsv"
    return list(read(ledger)) if ledger.exists() else []


@pytest.mark.slow
def test_every_proposer_goes_on_where_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_CACHE", str(data.parents[1]))
    text = (ROOT / "tests" / "tiny_train.py").read_text()
    policy = "MATRIX_LR = 0.5\nMATRIX_POLICY = {}  # fields of MatrixPolicy\n"
    (tmp_path / "train.py").write_text(text.replace("MATRIX_LR = 0.5\n", policy, 1))
    project = tiny_project(tmp_path / "project", tmp_path / "train.py")
    session = project / ".overnight" / "t"
    run(project, gone=lambda: len(rows(project)) >= 3)  # between two trials, or in the first steps of one
    first = rows(project)
    run(project, gone=lambda: (session / "trials" / "6" / "runs" / "0" / "run.log").exists())
    second = rows(project)
    assert "trial 6 was cut off: running it again" in run(project)
    found = rows(project)
    assert [row.trial for row in found] == list(range(TRIALS + 1))
    assert found[: len(second)] == second
    assert second[: len(first)] == first
    assert {row.proposer for row in found[1:]} == {"knobs", "evolve"}
    archive = load(session / "proposers" / "evolve")
    assert archive is not None
    assert [one.trial for one in archive.results] == [row.trial for row in found if row.proposer == "evolve"]
    assert len({one.run for one in archive.results}) == len(archive.results), "no run twice"
    study = optuna.load_study(study_name="knobs", storage=f"sqlite:///{session / 'proposers/knobs/knobs.sqlite'}")
    told = [trial.value for trial in study.trials if trial.state is TrialState.COMPLETE]
    theirs = [row.val_bpb for row in found if row.proposer != "evolve"]
    assert sorted(told) == pytest.approx(sorted(theirs), abs=2e-6), "each score once, the baseline's too"
    proposed = [trial.user_attrs["digest"] for trial in study.trials if "turned" in trial.user_attrs]
    assert len(set(proposed)) == len(theirs) - 1, "no point twice"
