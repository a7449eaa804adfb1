"""Hopeless runs of a real session over the tiny train.py; the curves of the past are given, as files."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import UsageError
from agent.folder import CURVE, EXECUTION, METRICS, SPEC, SessionFolder
from agent.kinds import Kind
from agent.pruner import FEWEST, RUN_ON, Prospect
from agent.pruning import PRUNING, Looked, looked_at, pasts, read_curve, spared, tally
from benchmarks.wire_session import project as tiny_project
from tests.agent.test_loop import edit, rows, session

ROOT = Path(__file__).parents[2]
PACED = Kind(code=False, pace=True)
FACTS = {"data_id": "d", "budget": "1s", "hardware": "h", "torch": "1", "task": {}}


@pytest.fixture
def tiny(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose runs of 400 steps take some four seconds; a rate of 0 learns nothing."""
    monkeypatch.setenv("OVERNIGHT_CACHE", str(data.parents[1]))
    text = (ROOT / "tests" / "tiny_train.py").read_text()
    text = text.replace("import torch\n", "import time\n\nimport torch\n", 1)
    (tmp_path / "train.py").write_text(
        text.replace("        step += 1\n", "        step += 1\n        time.sleep(0.01)\n")
    )
    return tiny_project(tmp_path / "project", tmp_path / "train.py")


def give_a_past(project: Path, count: int) -> None:
    """`count` trials that were as good as the baseline of session t, in another session like it."""
    here, there = SessionFolder(project, "t"), SessionFolder(project, "before")
    there.create()
    there.write_session(here.session() or {})
    for number in range(count + 1):
        shutil.copytree(here.trial(0).run(0), there.trial(number).run(0))
        if number:
            Looked(PACED, 0).write(there.trial(number).run(0))


def trial(project: Path, number: int) -> Path:
    return SessionFolder(project, "t").trial(number).run(0)


@pytest.mark.slow
def test_a_hopeless_run_is_stopped_and_a_good_one_is_not(tiny: Path) -> None:
    session(tiny, [], budget="400steps", experiments=0)
    hopeless = edit("MATRIX_LR = 0.5", "MATRIX_LR = 0.001")
    replies = [hopeless, edit("MATRIX_LR = 0.5", "MATRIX_LR = 0.6"), edit("MATRIX_LR = 0.6", "MATRIX_LR = 0.0001")]
    give_a_past(tiny, FEWEST - 1)
    session(tiny, replies, budget="400steps", experiments=1)
    assert rows(tiny)[1].fraction == 1.0, "eighteen curves give no margin"
    assert looked_at(trial(tiny, 1)) == Looked(PACED, 0)
    session(tiny, replies, budget="400steps", experiments=3)
    _, ran, better, stopped = rows(tiny)
    assert (better.status, stopped.status, stopped.val_bpb) == ("keep", "discard", None)
    assert 0.1 <= stopped.fraction <= 0.3
    assert stopped.reason.startswith("stopped at 10% of its budget: heading for val_bpb ")
    assert stopped.tokens_M is None
    assert stopped.total_seconds < ran.total_seconds
    looked = looked_at(trial(tiny, 3))
    assert looked is not None
    assert looked.prospect is not None
    assert looked.incumbent == 2, "the incumbent of that time"
    found = re.search(r"([0-9.]+) at best", stopped.reason)
    assert found is not None
    assert float(found[1]) == pytest.approx(better.val_bpb + looked.prospect.behind, abs=2e-6)
    assert not (trial(tiny, 3) / METRICS).exists()
    assert tally(SessionFolder(tiny, "t")) == {
        "stopped_early": 1,
        "stopped_at": 0.1,
        "ran_on": 0,
        "ran_on_better": 0,
    }
    assert len(list(pasts(tiny, SessionFolder(tiny, "t").session() or {}))) == FEWEST - 1 + 2, "it is no finished one"


@pytest.mark.slow
def test_one_in_ten_runs_on_and_says_how_it_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session(tiny, [], budget="400steps", experiments=0)
    give_a_past(tiny, FEWEST)
    monkeypatch.setattr("agent.pruning.RUN_ON", 1.0)
    session(tiny, [edit("MATRIX_LR = 0.5", "MATRIX_LR = 0.001")], budget="400steps", experiments=1)
    assert (rows(tiny)[1].status, rows(tiny)[1].fraction) == ("discard", 1.0)
    assert rows(tiny)[1].val_bpb > rows(tiny)[0].val_bpb
    looked = looked_at(trial(tiny, 1))
    assert looked is not None
    assert looked.ran_on
    found = tally(SessionFolder(tiny, "t"))
    assert (found["stopped_early"], found["ran_on"], found["ran_on_better"]) == (0, 1, 0)
    session(tiny, [], budget="400steps", experiments=1, pruner="conformal")
    with pytest.raises(UsageError, match="pruner: session t runs with conformal"):
        session(tiny, [], budget="400steps", experiments=1, pruner="none")
    assert looked.prospect is not None


def test_one_in_ten_is_one_in_ten_and_the_same_ones_every_time() -> None:
    found = [spared("may1", number) for number in range(5000)]
    assert found == [spared("may1", number) for number in range(5000)]
    assert abs(sum(found) / 5000 - RUN_ON) < 0.015


def test_a_half_written_curve_is_read_up_to_its_last_line(tmp_path: Path) -> None:
    (tmp_path / CURVE).write_text(json.dumps({"progress": 0.1, "loss": 2.0}) + '\n{"progress": 0.2, "lo')
    assert read_curve(tmp_path).progress == (0.1,)
    assert read_curve(tmp_path / "nowhere").progress == ()


def finished(root: Path, count: int, looked: Looked) -> SessionFolder:
    """A session whose trials have all run to their end, those behind the baseline with that look."""
    folder = SessionFolder(root, "t")
    folder.create()
    folder.write_session(FACTS)
    for number in range(count + 1):
        run = folder.trial(number).run(0)
        run.mkdir(parents=True)
        for name, text in ((SPEC, '{"seed": 1}'), (METRICS, '{"val_bpb": 1.5}'), (EXECUTION, "{}"), (CURVE, "")):
            (run / name).write_text(text)
        if number:
            looked.write(run)
    return folder


def test_half_a_folder_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    folder = finished(tmp_path, 6, Looked(PACED, 0))
    (folder.trial(1).run(0) / PRUNING).write_text("")
    (folder.trial(2).run(0) / METRICS).write_text("[]")
    (folder.trial(3).path / "record.json").write_text('{"commit": "abc')
    (folder.trial(4).path / "record.json").write_text('{"from": "another version"}')
    (folder.trial(5).run(0) / CURVE).write_bytes(b"\xff\xfe no text\n")
    assert [kind for kind, _ in pasts(tmp_path, FACTS)] == [PACED]


def test_what_a_broken_folder_would_say_is_left_out_of_the_tally(tmp_path: Path) -> None:
    prospect = Prospect(0.25, 0.1, 0.2)
    folder = finished(tmp_path, 7, Looked(PACED, 0, prospect, ran_on=True))
    (folder.trial(1).run(0) / METRICS).write_text('{"val_bpb": 1.4}')
    (folder.trial(2).run(0) / PRUNING).write_text('{"kind": {"co')
    (folder.trial(3).run(0) / PRUNING).write_text("[]")
    (folder.trial(4).run(0) / METRICS).write_text("{}")
    (folder.trial(5).run(0) / METRICS).write_text('{"val_bpb": null}')
    (folder.trial(6).run(0) / CURVE).write_text('{"progress": \n')
    (folder.trial(7).run(0) / CURVE).write_text("[]\n")
    assert tally(folder) == {"stopped_early": 0, "stopped_at": None, "ran_on": 2, "ran_on_better": 1}
    Looked(PACED, 5, prospect).write(folder.trial(8).run(0))
    Looked(PACED, 5, replace(prospect, share="x")).write(folder.trial(9).run(0))
    assert tally(folder) == {"stopped_early": 1, "stopped_at": 0.25, "ran_on": 2, "ran_on_better": 1}
