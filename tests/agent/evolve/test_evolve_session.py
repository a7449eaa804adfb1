"""Whole sessions of evolution: real git, real children, the real loop, judge and ledger."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import ProviderRefused
from agent.ledger import Ledger
from agent.proposers.evolve.archive import Archive, Preset, Stage, load
from agent.proposers.knobs import Knobs
from agent.values import Record, Status
from benchmarks.wire_session import project as tiny_project
from sandbox.pool import Slot
from tests.agent.evolve.helpers import SMALL, prepared, run
from tests.conftest import git

ROOT = Path(__file__).parents[3]
TWO = (Slot(0, "one"), Slot(1, "two"))
ARGUMENTS = ("run", "--tag", "t", "--proposer", "evolve", "--budget", "100steps")


def overnight(project: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *arguments]
    full = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(command, cwd=project, env=full, capture_output=True, text=True, check=False)


def rows(project: Path) -> tuple[Record, ...]:
    return Ledger(project / ".overnight/t/results.tsv").records()


def what(records: tuple[Record, ...]) -> list[tuple[str, str, int | None, float | None]]:
    return [(row.description, row.budget, row.seed, row.val_bpb) for row in records]


def archive(project: Path) -> Archive:
    found = load(project / ".overnight/t/proposers/evolve")
    assert found is not None
    return found


def killed_after(project: Path, count: int) -> None:
    """A session from the command line, gone without a word once it has so many rows."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with (project.parent / "log").open("w") as log:
        command = [sys.executable, "-m", "agent", *ARGUMENTS, "--conservative"]
        process = subprocess.Popen(command, cwd=project, env=env, stdout=log, stderr=log, start_new_session=True)
        ledger = project / ".overnight/t/results.tsv"
        deadline = time.monotonic() + 120
        while not ledger.exists() or len(ledger.read_text().splitlines()) <= count:
            assert process.poll() is None, (project.parent / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_killed_it_goes_on_with_the_same_policies_and_seeds(project: Path, tmp_path: Path) -> None:
    prepared(project)
    killed_after(project, 4)
    refused = overnight(project, *ARGUMENTS, "--aggressive")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "runs with conservative, found aggressive; use another --tag" in refused.stderr
    resumed = overnight(project, *ARGUMENTS, "--experiments", "13")
    assert resumed.returncode == 0, resumed.stderr
    whole = tmp_path / "whole"
    git(tmp_path, "clone", "-q", str(project), str(whole))
    done = overnight(whole, *ARGUMENTS, "--experiments", "13")
    assert "47 screens and 45 promotion runs left" in done.stdout
    assert what(rows(project)) == what(rows(whole))
    assert [row.budget for row in rows(whole)] == ["100steps"] + ["25steps"] * 11 + ["50steps"] * 2
    assert [one.run for one in archive(project).results] == [one.run for one in archive(whole).results]
    assert {row.status for row in rows(whole)[1:]} == {Status.DISCARD}


@pytest.mark.slow
def test_a_generation_ends_in_a_keep_and_its_lineage_can_be_read(project: Path) -> None:
    prepared(project)
    with pytest.raises(ProviderRefused, match="found all 2 done; see `overnight lineage`"):
        run(project, SMALL)
    found = archive(project)
    trials = [one for one in found.results if one.run.stage is Stage.TRIAL]
    assert [one.status for one in trials][-1] == Status.KEEP
    kept = found.individuals[trials[-1].run.id]
    assert f"MATRIX_POLICY = {{{kept.policy.text[1:-1]}}}" in git(project, "show", "overnight/t:train.py")
    page = overnight(project, "lineage")
    assert page.returncode == 0, page.stderr
    lines = page.stdout.splitlines()
    assert lines[0] == f"small: generation 2 of 2, {len(found.individuals)} policies, {len(found.results)} runs"
    assert all(any(line.strip().startswith(id) for line in lines) for id in found.individuals)
    assert any(line.startswith("    ") and kept.id in line and line.endswith("kept]") for line in lines)
    facts = json.loads(overnight(project, "lineage", "--json").stdout)
    assert Archive.of(facts) == found
    operator = next(one for one in facts["operators"] if one["name"] == kept.operator)
    assert (operator["promoted"], operator["survived"], operator["won"]) == (1, 1, 1)
    assert operator["best"] > 0
    assert [(one["rank"], one["of"]) for one in facts["wins"]["1 separates good from bad"]] == [(6, 7), (7, 7)]
    assert facts["wins"]["4 holds elsewhere"]["promotion"]["seeds better"] == "3 of 3"


def test_without_a_policy_the_command_says_so(project: Path) -> None:
    done = overnight(project, *ARGUMENTS)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "evolve: train.py: expected one line MATRIX_POLICY" in done.stderr


def test_there_is_no_lineage_of_other_sessions(project: Path) -> None:
    overnight(project, "run", "--tag", "t", "--proposer", "knobs", "--budget", "1steps", "--experiments", "0")
    done = overnight(project, "lineage")
    assert done.returncode == 2
    assert "expected a session of --proposer evolve, found none of it in t" in done.stderr


@pytest.mark.slow
def test_on_two_slots_it_waits_for_a_stage_and_comes_to_the_same(project: Path, tmp_path: Path) -> None:
    prepared(project)
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(project), str(other))
    for folder, slots in ((project, TWO), (other, TWO[:1])):
        run(folder, Preset("one", 1, 1), slots, experiments=10)
    stages = [one.run.stage for one in archive(project).results]
    assert stages == [Stage.SCREEN] * 4 + [Stage.PROMOTION] * 6, "no promotion before the last screen has landed"
    assert {(row.description, row.seed, row.val_bpb) for row in rows(project)} == {
        (row.description, row.seed, row.val_bpb) for row in rows(other)
    }


def test_while_it_waits_for_its_runs_another_proposer_has_the_slot(project: Path) -> None:
    prepared(project)
    knobs = Knobs(project.parent / "knobs", "cpu")
    reason, *_ = run(project, Preset("one", 1, 1), TWO, [knobs], experiments=5)
    assert reason == "5 experiments done"
    by = [row.proposer for row in sorted(rows(project), key=lambda row: row.trial or 0)]
    assert by == ["baseline", *["evolve"] * 4, "knobs"], "the last screen was in flight"


def test_an_interrupted_screen_is_run_again_in_its_place(project: Path) -> None:
    prepared(project)
    one = Preset("one", 1, 1)
    run(project, one, experiments=1)
    ledger = project / ".overnight/t/results.tsv"
    first = archive(project).results
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))  # killed before its row was written
    folder = project / ".overnight/t/trials/1"
    (folder / "record.json").unlink()
    state = project / ".overnight/t/proposers/evolve/archive.json"
    facts = json.loads(state.read_text())
    state.write_text(json.dumps(facts | {"results": []}))
    run(project, None, experiments=2)
    again = archive(project).results
    assert again[0] == first[0]
    assert [row.trial for row in rows(project)] == [0, 1, 2]
    assert rows(project)[1].budget == "25steps"


@pytest.mark.slow
def test_on_the_real_trainer_a_run_has_a_curve(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = (ROOT / "tests" / "tiny_train.py").read_text()
    for old, new in (
        ("MATRIX_LR = 0.5\n", "MATRIX_LR = 0.5\nMATRIX_POLICY = {}\n"),
        ("lr=MATRIX_LR)", 'lr=MATRIX_LR * MATRIX_POLICY.get("update_multiplier", 1.0))'),
    ):
        assert tiny.count(old) == 1
        tiny = tiny.replace(old, new)
    (tmp_path / "train.py").write_text(tiny)
    folder = tiny_project(tmp_path / "project", tmp_path / "train.py")
    monkeypatch.setenv("OVERNIGHT_CACHE", str(data.parents[1]))
    run(folder, Preset("one", 1, 1), experiments=2, budget="40steps")
    results = archive(folder).results
    assert [one.status for one in results] == ["discard", "discard"]
    assert [row.budget for row in rows(folder)] == ["40steps", "10steps", "10steps"]
    assert all(one.score and one.speed and one.rise is not None for one in results)
    assert results[0].run.seed == results[1].run.seed == rows(folder)[1].seed


def test_the_ledger_is_the_archive_s_source(project: Path) -> None:
    """A row that was written and never told is learned from, and not run again."""
    prepared(project)
    run(project, Preset("one", 1, 1), experiments=2)
    known = archive(project)
    state = project / ".overnight/t/proposers/evolve/archive.json"
    state.write_text(json.dumps(replace(known, results=known.results[:1]).facts()))
    run(project, None, experiments=3)
    assert archive(project).results[:2] == known.results
    assert len(rows(project)) == 4
    assert Status.REJECT not in {row.status for row in rows(project)}
