"""Whole sessions over a five-line train.py: real git, real children, the scripted model that ships."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import load
from agent.errors import ProviderRefused, StateError, UsageError
from agent.folder import SessionFolder
from agent.ledger import Ledger
from agent.loop import Loop
from agent.repo import Repo
from agent.session import SLOTS, build_parts, make_proposers, open_session
from agent.values import Record, Run
from sandbox.pool import LocalPool
from tests.agent.test_repo import dirty, fingerprint
from tests.conftest import FAKE_TRAIN, commit_all, git


def edit(search: str, replace: str, description: str = "an idea", **more: Any) -> dict[str, Any]:
    edits = [{"path": "train.py", "search": search, "replace": replace}]
    return {"tool": {"description": description, "hypothesis": "h", "category": "schedule", "edits": edits}} | more


def session(project: Path, replies: list[dict[str, Any]], **flags: Any) -> tuple[str, Loop]:
    """Run a session over scripted replies until it stops; the reason and the loop."""
    script = project.parent / "script.jsonl"
    script.write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    given = {"tag": "t", "proposer": "llm", "model": f"scripted:{script}", "budget": "10steps"} | flags
    settings, repo = load(project, given), Repo(project)
    opened = open_session(settings, repo)
    with opened.folder.lock(), LocalPool[Run](SLOTS) as pool:
        loop = Loop(build_parts(opened, settings, repo, pool, print, make_proposers(opened, settings, repo)))
        return loop.run(), loop


def rows(project: Path) -> tuple[Record, ...]:
    return Ledger(project / ".overnight" / "t" / "results.tsv").records()


def statuses(project: Path) -> list[str]:
    return [record.status for record in rows(project)]


def test_keep_and_discard_against_the_last_kept(project: Path) -> None:
    session(
        project,
        [edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.2", "LR = 0.4"), edit("LR = 0.2", "LR = 0.1")],
        experiments=3,
    )
    assert statuses(project) == ["keep", "keep", "discard", "keep"]
    assert [record.val_bpb for record in rows(project)] == [1.16, 1.01, 1.09, 1.0]
    assert [record.parent for record in rows(project)][2:] == [rows(project)[1].commit] * 2
    repo = Repo(project)
    assert git(project, "rev-parse", "--short=7", "overnight/t") == rows(project)[3].commit
    for n, record in enumerate(rows(project)):
        assert git(project, "rev-parse", f"refs/overnight/t/{n}")[:7] == record.commit
    assert "LR = 0.4" in repo.read(git(project, "rev-parse", "refs/overnight/t/2"), ["train.py"])["train.py"]


def test_a_crash_is_a_row_and_goes_back_to_the_model(project: Path) -> None:
    session(project, [edit("LR = 0.5", "LR = 1 / 0"), edit("LR = 0.5", "LR = 0.3")], experiments=2)
    assert statuses(project) == ["keep", "crash", "keep"]
    assert "ZeroDivisionError" in rows(project)[1].reason
    assert rows(project)[1].val_bpb is None
    assert "ZeroDivisionError" in (project / ".overnight/t/trials/2/prompt.txt").read_text()


def test_crash_repairs_end_after_two(project: Path) -> None:
    broken = [edit("LR = 0.5", f"LR = {n} / 0") for n in range(1, 4)]
    session(project, [*broken, edit("LR = 0.5", "LR = 0.3", "afresh")], experiments=4)
    assert statuses(project) == ["keep", "crash", "crash", "crash", "keep"]
    opening = (project / ".overnight/t/trials/4/prompt.txt").read_text()
    assert "LR = 0.5" in opening, "the fourth proposal starts a conversation of its own"


def test_a_patch_that_does_not_fit_is_repaired_and_every_exchange_is_charged(project: Path) -> None:
    replies = [edit("LR = 7", "LR = 1", cost_usd=0.25), edit("LR = 0.5", "LR = 0.2", cost_usd=0.5)]
    session(project, replies, experiments=1)
    assert statuses(project) == ["keep", "keep"]
    assert rows(project)[1].cost_usd == 0.75


def test_a_proposal_that_cannot_be_repaired_is_rejected_and_charged(project: Path) -> None:
    bad = [
        edit("nowhere", "x", cost_usd=0.1),
        {"text": "I would rather talk.", "cost_usd": 0.2},
        edit("", "y", cost_usd=0.3),
    ]
    session(project, [*bad, edit("LR = 0.5", "LR = 0.2")], experiments=1)
    assert statuses(project) == ["keep", "reject", "keep"]
    rejected = rows(project)[1]
    assert (rejected.commit, rejected.val_bpb, rejected.cost_usd) == (None, None, pytest.approx(0.6))
    assert (
        (project / ".overnight/t/results.tsv")
        .read_text()
        .splitlines()[2]
        .startswith("-------\t0.000000\t0.0\treject\t")
    )


def test_a_duplicate_is_refused_with_the_score_it_had(project: Path) -> None:
    again = edit("LR = 0.5", "LR   =  0.50  # once more")
    session(
        project,
        [edit("LR = 0.5", "LR = 0.7"), edit("LR = 0.5", "LR = 0.7 # same"), again, edit("LR = 0.5", "LR = 0.3")],
        experiments=2,
    )
    assert statuses(project) == ["keep", "discard", "keep"]
    talk = (project / ".overnight/t/trials/2/prompt.txt").read_text()
    assert "tried before" in talk
    assert "trial 0 (baseline)" in talk


def test_a_run_that_prints_no_number_is_a_crash(project: Path) -> None:
    session(project, [edit('print("---"', 'print("--"')], experiments=1)
    assert statuses(project) == ["keep", "crash"]
    assert "no number" in rows(project)[1].reason


def test_max_usd_stops_before_the_next_request(project: Path) -> None:
    replies = [edit("LR = 0.5", f"LR = 0.{n}", cost_usd=0.4) for n in (9, 8, 7)]
    reason, loop = session(project, replies, max_usd=0.5)
    assert len(loop.records) == 3
    assert "0.80 spent" in reason


def test_max_usd_holds_between_repairs(project: Path) -> None:
    replies = [edit("no", "x", cost_usd=0.6), edit("LR = 0.5", "LR = 0.3")]
    session(project, replies, max_usd=0.5)
    assert statuses(project) == ["keep", "reject"]


def test_the_users_checkout_is_byte_identical_afterwards(project: Path) -> None:
    dirty(project)
    before = fingerprint(project)
    session(project, [edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.2", "LR = 0.9")], experiments=2)
    assert statuses(project) == ["keep", "keep", "discard"]
    assert fingerprint(project) == before
    assert not (project / ".git" / "hook-ran").exists()
    assert git(project, "status", "--porcelain").splitlines() == ["M  train.py"] or "staged.txt" in git(
        project, "status", "--porcelain"
    )


def test_a_refused_provider_stops_the_session_resumably(project: Path) -> None:
    with pytest.raises(ProviderRefused, match="script ended"):
        session(project, [edit("LR = 0.5", "LR = 0.2")])
    assert statuses(project) == ["keep", "keep"]
    session(project, [edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.2", "LR = 0.15")], experiments=2)
    assert statuses(project) == ["keep", "keep", "keep"]


def test_another_proposer_goes_on_where_one_is_refused(project: Path) -> None:
    answer = project.parent / "answer.txt"
    answer.write_text(
        "description: by command\n\ntrain.py\n<<<<<<< SEARCH\nLR = 0.2\n=======\nLR = 0.15\n>>>>>>> REPLACE\n"
    )
    session(project, [edit("LR = 0.5", "LR = 0.2")], proposer="llm,command", command=f"cat {answer}", experiments=2)
    assert [(record.proposer, record.status) for record in rows(project)[1:]] == [("llm", "keep"), ("command", "keep")]


def test_a_cut_off_trial_is_run_again_and_a_lost_row_is_written_again(project: Path) -> None:
    session(project, [edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.2", "LR = 0.15")], experiments=2)
    ledger, folder = project / ".overnight/t/results.tsv", SessionFolder(project, "t")
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:2]) + lines[2][:20])  # trial 1 half written, trial 2 not at all
    (folder.trial(2).path / "record.json").unlink()  # … because it was still running
    git(project, "update-ref", "refs/heads/overnight/t", git(project, "rev-parse", "refs/overnight/t/1"))
    session(project, [], experiments=2)
    assert statuses(project) == ["keep", "keep", "keep"]
    assert [record.trial for record in rows(project)] == [0, 1, 2]
    assert git(project, "rev-parse", "overnight/t") == git(project, "rev-parse", "refs/overnight/t/2")


def test_the_branch_follows_the_ledger_after_a_crash_between_the_two(project: Path) -> None:
    session(project, [edit("LR = 0.5", "LR = 0.2")], experiments=1)
    git(project, "update-ref", "refs/heads/overnight/t", git(project, "rev-parse", "refs/overnight/t/0"))
    session(project, [], experiments=1)
    assert git(project, "rev-parse", "overnight/t") == git(project, "rev-parse", "refs/overnight/t/1")


def test_a_baseline_that_does_not_run_stops_with_a_line(project: Path) -> None:
    (project / "train.py").write_text("raise ValueError('no')\n")
    commit_all(project)
    with pytest.raises(
        StateError, match="baseline: expected the unchanged code to train, found: exit 1: ValueError: no"
    ):
        session(project, [])


def test_other_hardware_budget_or_profile_never_mix(project: Path) -> None:
    session(project, [], experiments=0)
    with pytest.raises(UsageError, match="use another --tag"):
        session(project, [], experiments=0, budget="20steps")
    facts = json.loads((project / ".overnight/t/session.json").read_text())
    (project / ".overnight/t/session.json").write_text(json.dumps(facts | {"hardware": "a bigger one"}))
    with pytest.raises(StateError, match="expected hardware 'a bigger one'"):
        session(project, [], experiments=0)


def test_one_runner_per_tag(project: Path) -> None:
    session(project, [], experiments=0)
    with SessionFolder(project, "t").lock(), pytest.raises(StateError, match=f"held by process {os.getpid()}"):
        session(project, [], experiments=1)


@pytest.mark.parametrize("tag", ["", "UP", "../x", "a..b", "-a", "a/b", "a.lock", "x" * 42, "a b", "a\n"])
def test_bad_tags(project: Path, tag: str) -> None:
    with pytest.raises(UsageError, match="tag: expected"):
        session(project, [], tag=tag)


def overnight(project: Path, *args: str, **more: Any) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "agent", *args]
    return subprocess.Popen(
        command, cwd=project, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
    )


def slow_session(project: Path) -> subprocess.Popen[str]:
    """A session in a process of its own whose trial 1 sleeps; returns once that trial runs."""
    (project / "train.py").write_text(FAKE_TRAIN + "import time; time.sleep(0)\n")
    commit_all(project)
    script = project.parent / "script.jsonl"
    slow = edit("time.sleep(0)", "time.sleep(3 if LR == 0.5 else 0)")
    script.write_text(json.dumps(slow) + "\n" + json.dumps(edit("LR = 0.5", "LR = 0.2")) + "\n")
    child = overnight(
        project,
        "run",
        "--tag",
        "t",
        "--proposer",
        "llm",
        "--model",
        f"scripted:{script}",
        "--budget",
        "10steps",
        "--experiments",
        "2",
    )
    deadline = time.monotonic() + 60
    while not (project / ".overnight/t/trials/1/runs/0/run.log").exists():
        assert time.monotonic() < deadline and child.poll() is None, child.communicate()
        time.sleep(0.05)
    return child


def test_ctrl_c_once_finishes_the_trial(project: Path) -> None:
    child = slow_session(project)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert "stopped: interrupted" in out
    assert [record.trial for record in rows(project)] == [0, 1]


def test_ctrl_c_twice_abandons_it_and_a_resumed_session_runs_it_again(project: Path) -> None:
    child = slow_session(project)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert "trial 1 was abandoned; `overnight run --tag t` runs it again" in err
    assert [record.trial for record in rows(project)] == [0]
    again = overnight(
        project,
        "run",
        "--tag",
        "t",
        "--proposer",
        "llm",
        "--model",
        f"scripted:{project.parent / 'script.jsonl'}",
        "--experiments",
        "2",
    )
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    assert [record.trial for record in rows(project)] == [0, 1, 2]
    assert rows(project)[2].status == "keep"
