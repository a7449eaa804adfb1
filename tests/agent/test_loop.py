"""Whole sessions over a five-line train.py: real git, real children, the scripted model that ships."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import load
from agent.errors import ProviderRefused, StateError, UsageError
from agent.folder import SessionFolder
from agent.judge import Judge, Standing
from agent.ledger import Ledger
from agent.lineup import make_proposers
from agent.loop import Loop
from agent.repo import Repo
from agent.reruns import scores
from agent.session import SLOTS, build_parts, open_session
from agent.values import Outcome, Proposal, Record, RunAgain, Status, Trial, Verdict
from benchmarks.wire_server import WireServer, slow, tool
from sandbox.pool import LocalPool
from tests.agent.test_repo import dirty, fingerprint
from tests.conftest import CLAIMED, FAKE_TRAIN, commit_all, git


def edit(
    search: str, replace: str, description: str = "an idea", category: str = "schedule", **more: Any
) -> dict[str, Any]:
    edits = [{"path": "train.py", "search": search, "replace": replace}]
    return {"tool": {"description": description, "hypothesis": "h", "category": category, "edits": edits}} | more


def session(
    project: Path,
    replies: list[dict[str, Any]],
    judge: Judge | None = None,
    judge_name: str = "greedy",
    **flags: Any,
) -> tuple[str, Loop]:
    """Run a session over scripted replies until it stops; the reason and the loop."""
    script = project.parent / "script.jsonl"
    script.write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    given = {"tag": "t", "proposer": "llm", "model": f"scripted:{script}", "budget": "10steps"}
    given |= {"judge": judge_name} | flags
    settings, repo = load(project, given), Repo(project)
    opened = open_session(settings, repo)
    with opened.folder.lock(), LocalPool[Outcome](SLOTS) as pool:
        parts = build_parts(opened, settings, repo, pool, print, make_proposers(opened, settings, repo))
        loop = Loop(replace(parts, judge=judge or parts.judge))
        return loop.run(), loop


def rows(project: Path) -> tuple[Record, ...]:
    return Ledger(project / ".overnight" / "t" / "results.tsv").records()


def statuses(project: Path) -> list[str]:
    return [record.status for record in rows(project)]


def test_prices_of_models_stand_in_the_settings_file(project: Path) -> None:
    with (project / "overnight.toml").open("a") as settings:
        settings.write('\n[prices]\nhomegrown = "1,10"\n')
    wanted = edit("LR = 0.5", "LR = 0.2")["tool"]
    with WireServer([tool(wanted)]) as server:
        session(project, [], model="openai:homegrown", base_url=server.base_url, experiments=1)
    assert statuses(project) == ["keep", "keep"]
    assert rows(project)[1].cost_usd > 0.0


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


def test_a_task_may_want_more_of_its_metric(project: Path) -> None:
    (project / "overnight.toml").write_text(CLAIMED + 'direction = "max"\n')
    commit_all(project)
    lower, higher, between = edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.5", "LR = 0.9"), edit("LR = 0.9", "LR = 0.7")
    _, loop = session(project, [lower, higher, between], experiments=3)
    assert statuses(project) == ["keep", "discard", "keep", "discard"]
    assert [record.val_bpb for record in rows(project)] == [1.16, 1.01, 1.64, 1.36]
    assert "LR = 0.9" in git(project, "show", "overnight/t:train.py")
    assert loop.history().direction == "max"


def test_a_crash_is_a_row_and_goes_back_to_the_model(project: Path) -> None:
    session(project, [edit("LR = 0.5", "LR = 1 / 0"), edit("LR = 0.5", "LR = 0.3")], experiments=2)
    assert statuses(project) == ["keep", "crash", "keep"]
    assert "ZeroDivisionError" in rows(project)[1].reason
    assert rows(project)[1].val_bpb is None
    assert "ZeroDivisionError" in (project / ".overnight/t/trials/2/prompt.txt").read_text()


def test_a_model_keeps_notes_and_a_human_may_edit_them(project: Path) -> None:
    first, second = edit("LR = 0.5", "LR = 0.3"), edit("LR = 0.3", "LR = 0.2")
    first["tool"]["insights"] = "- lower is better\n- so far"
    session(project, [first], experiments=1)
    notes = project / ".overnight/t/insights.md"
    assert notes.read_text() == "- lower is better\n- so far\n"
    notes.write_text("- lower is better, says Ann\n")
    session(project, [first, second], experiments=2)
    assert "- lower is better, says Ann" in (project / ".overnight/t/trials/2/prompt.txt").read_text()
    assert notes.read_text() == "- lower is better, says Ann\n", "a proposal without notes leaves them"


def test_crash_repairs_end_after_two(project: Path) -> None:
    broken = [edit("LR = 0.5", f"LR = {n} / 0") for n in range(1, 4)]
    session(project, [*broken, edit("LR = 0.5", "LR = 0.3", "afresh")], experiments=4)
    assert statuses(project) == ["keep", "crash", "crash", "crash", "keep"]
    opening = (project / ".overnight/t/trials/4/prompt.txt").read_text()
    assert "LR = 0.5" in opening, "the fourth proposal starts a conversation of its own"


def test_a_crash_goes_back_to_the_model_when_the_session_stopped_behind_it(project: Path) -> None:
    replies = [*(edit("LR = 0.5", f"LR = {n} / 0") for n in range(1, 4)), edit("LR = 0.5", "LR = 0.3", "afresh")]
    for experiments in range(1, 5):
        session(project, replies, experiments=experiments)
    assert statuses(project) == ["keep", "crash", "crash", "crash", "keep"]
    prompts = [(project / f".overnight/t/trials/{n}/prompt.txt").read_text() for n in range(1, 5)]
    openings = ["# Results so far" in prompt for prompt in prompts]
    assert openings == [True, False, False, True]
    assert all("ZeroDivisionError" in prompt for prompt in prompts[1:])


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
        StateError, match="baseline: expected the unchanged code to train, found: exit 1: ValueError: no; see "
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


def slow_session(project: Path, **more: Any) -> subprocess.Popen[str]:
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
        **more,
    )
    deadline = time.monotonic() + 60
    while not (project / ".overnight/t/trials/1/runs/0/run.log").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
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


def waiting_session(project: Path, server: WireServer, model: str) -> subprocess.Popen[str]:
    """A session that waits for its first answer."""
    command = ["run", "--tag", "t", "--proposer", "llm", "--model", model, "--base-url", server.base_url]
    child = overnight(project, *command, "--price", "1,1", "--budget", "10steps", "--experiments", "2")
    deadline = time.monotonic() + 60
    while not server.requests:
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    return child


def test_ctrl_c_while_a_model_thinks_begins_no_training_and_loses_no_answer(project: Path) -> None:
    wanted = edit("LR = 0.5", "LR = 0.2")["tool"]
    with WireServer([slow(2.0, tool(wanted))]) as server:
        child = waiting_session(project, server, "openai:some")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, "trial 1 is ready, not begun" in out) == (0, True), out + err
    assert [record.trial for record in rows(project)] == [0]
    _, loop = session(project, [], judge_name="confirm", experiments=1)
    assert [record.val_bpb for record in loop.records] == [1.16, 1.01]
    assert loop.records[1].cost_usd > 0.0


@pytest.mark.parametrize("model", ["anthropic:some", "openai:some"])
def test_ctrl_c_twice_ends_the_wait_for_a_model(project: Path, model: str) -> None:
    with WireServer([slow(60.0)] * 9) as server:
        child = waiting_session(project, server, model)
        began = time.monotonic()
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = child.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert child.returncode == 1
    assert err.strip().splitlines()[-1] == "overnight: interrupted; `overnight run --tag t` goes on"


BY_SEED = FAKE_TRAIN.replace(
    "LR = 0.5",
    "import json, random\nLR = 0.5\nLUCKY = False\nseed = json.load(open(os.environ['OVERNIGHT_TRIAL']))['seed']",
).replace("numbers =", "loss += random.Random(seed).gauss(0, 0.005) - (0.2 if LUCKY and seed == 42 else 0)\nnumbers =")


def test_a_lucky_seed_is_not_kept_and_a_small_true_gain_is(project: Path) -> None:
    """On the session's seed one is far better; on fresh ones it is what it was. The session is left and taken up."""
    (project / "train.py").write_text(BY_SEED)
    commit_all(project)
    lucky_one = edit("LUCKY = False", "LUCKY = True")
    session(project, [lucky_one], judge_name="confirm", experiments=1)
    small = [
        lucky_one,
        edit("LR = 0.5", "LR = 0.49"),
        edit("LR = 0.49", "LR = 0.48"),
        edit("LR = 0.48", "LR = 0.6", category="loss"),
    ]
    _, loop = session(project, small, judge_name="confirm", experiments=4)
    assert statuses(project) == ["keep", "discard", "keep", "keep", "discard"]
    lucky, kept, kept_too, worse = rows(project)[1:]
    folder = SessionFolder(project, "t")
    fresh = {
        number: [json.loads((run / "trial.json").read_text())["seed"] for run in folder.trial(number).runs()]
        for number in (1, 2, 3, 4)
    }
    assert fresh[2] == fresh[1][: len(fresh[2])], "challengers of one incumbent meet it on its seeds"
    assert fresh[1][0] == fresh[3][0] == 42
    assert not set(fresh[1][1:]) & set(fresh[3][1:]), "another incumbent, other seeds"
    assert len(fresh[4]) == 1, "a clear loss costs one run"
    assert sorted(int(path.name) for path in folder.trial(0).defence()) == sorted(fresh[1][1:])
    assert scores(folder.trial(1).runs())[42] == pytest.approx(rows(project)[0].val_bpb - 0.2)
    assert lucky.val_bpb == rows(project)[0].val_bpb, "what fresh seeds have shown"
    assert "gain +0.000000 on 3 fresh seeds" in lucky.reason
    ours, theirs = scores(folder.trial(2).runs()[1:]), scores(folder.trial(0).defence())
    gains = [theirs[seed] - value for seed, value in ours.items()]
    assert rows(project)[0].val_bpb - statistics.fmean(gains) <= kept.val_bpb < rows(project)[0].val_bpb
    assert (kept.n, lucky.n, worse.n) == (len(fresh[2]) - 1, 3, 1)
    assert kept.sigma == pytest.approx(statistics.stdev(gains), abs=1e-6)
    assert [folder.trial(number).finding() is not None for number in (0, 1, 2, 3, 4)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert folder.session()["judge"] == "confirm"
    assert kept_too.parent == kept.commit
    assert loop.holder.sources["train.py"].count("LR = 0.48") == 1


SLEEPY = (
    FAKE_TRAIN.replace("LR = 0.5", "import json, time\nLR = 0.5")
    + """
if LR != 0.5 and json.load(open(os.environ['OVERNIGHT_TRIAL']))["seed"] != 42: time.sleep(3)
"""
)


def test_a_trial_that_is_cut_off_goes_on_behind_its_first_run(project: Path) -> None:
    """Ctrl-C while it runs on a fresh seed: that run ends, the judge wants another, and none is begun."""
    (project / "train.py").write_text(SLEEPY)
    commit_all(project)
    script = project.parent / "script.jsonl"
    script.write_text(json.dumps(edit("LR = 0.5", "LR = 0.49")) + "\n")
    args = ["run", "--tag", "t", "--proposer", "llm", "--model", f"scripted:{script}", "--budget", "10steps"]
    child = overnight(project, *args, "--experiments", "1")
    trial = SessionFolder(project, "t").trial(1)
    deadline = time.monotonic() + 60
    while not (trial.run(1) / "trial.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0, out + err
    assert "trial 1 is undecided" in out
    assert statuses(project) == ["keep"]
    stamps = [(run / "metrics.json").stat().st_mtime_ns for run in trial.runs()]
    assert len(stamps) == 2
    again = overnight(project, *args, "--experiments", "1")
    out, err = again.communicate(timeout=60)
    assert "trial 1 was cut off: going on after 2 of its runs" in out, out + err
    assert statuses(project)[1] in ("keep", "discard")
    assert [(run / "metrics.json").stat().st_mtime_ns for run in trial.runs()][:2] == stamps


def test_a_model_that_turns_the_same_constant_the_same_way_is_told_what_came_of_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up, more = edit("LR = 0.5", "LR = 0.6"), edit("LR = 0.5", "LR = 0.7")
    session(project, [up], experiments=1)
    session(project, [up, more, edit("LR = 0.5", "LR = 0.4"), edit("LR = 0.4", "LR = 0.45")], experiments=3)
    assert statuses(project) == ["keep", "discard", "keep", "discard"]
    told = "llm: LR up was tried on this very code: trial 1 (an idea) ended as discard with val_bpb 1.250000"
    assert capsys.readouterr().out.count(told) == 1


def test_a_fourth_idea_of_one_category_is_sent_back_and_the_next_prompt_says_where_to_turn(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = [edit("LR = 0.5", "LR = 0.5\n" + "X = 1\n" * n + "LR += 0.1") for n in range(1, 4)]
    fourth = edit("LR = 0.5", "LR = 0.5\nLR += 0.2")
    other = edit("LR = 0.5", "LR = 0.5\nLR += 0.3", category="loss")
    last = edit("LR = 0.5", "LR = 0.5\nLR += 0.4", category="data")
    session(project, [*worse, fourth, other, last], experiments=5)
    assert [record.category for record in rows(project)][1:] == [*["schedule"] * 3, "loss", "data"]
    assert capsys.readouterr().out.count("llm: the last 3 proposals were all of category schedule; propose one of") == 1
    trials = project / ".overnight/t/trials"
    assert "The last 3 proposals were all of category schedule." not in (trials / "3/prompt.txt").read_text()
    assert "The last 3 proposals were all of category schedule." not in (trials / "5/prompt.txt").read_text()


class Twice:
    """Trains everything once more, with seed 7, before it keeps it."""

    def decide(self, trial: Trial, _standing: Standing) -> Verdict | RunAgain:
        return RunAgain(7, "once more") if len(trial.runs) < 2 else Verdict(Status.KEEP, "twice")

    def wanted(self, _standing: Standing) -> float:
        return 0.0


def test_a_judge_may_ask_for_another_seed(project: Path) -> None:
    _, loop = session(project, [edit("LR = 0.5", "LR = 0.2")], judge=Twice(), experiments=1)
    assert [(record.status, record.n) for record in loop.records] == [("keep", 1), ("keep", 1)]  # the fresh one
    runs = SessionFolder(project, "t").trial(1).runs()
    assert [json.loads((run / "trial.json").read_text())["seed"] for run in runs] == [42, 7]


def killed_session(project: Path) -> subprocess.Popen[str]:
    """A session whose trial 1 is running when the power goes."""
    child = slow_session(project)
    child.kill()
    child.wait()
    return child


def test_a_killed_session_goes_on(project: Path) -> None:
    killed_session(project).communicate()
    time.sleep(0.5)  # the runner sees that its parent is gone and ends what it started
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(project) not in "\n".join(line for line in listing.splitlines() if "train.py" in line)
    assert (project / ".overnight/t/trials/1/runs/0/work").exists()
    args = ["run", "--tag", "t", "--proposer", "llm", "--model", f"scripted:{project.parent / 'script.jsonl'}"]
    again = overnight(project, *args, "--experiments", "2")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, out + err
    assert "trial 1 was cut off: running it again" in out
    assert [record.trial for record in rows(project)] == [0, 1, 2]


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_still_finishes_the_trial(project: Path) -> None:
    child = slow_session(project, start_new_session=True)
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 0, err
    assert [record.status for record in rows(project)][1:] != ["crash"]


def test_a_number_whose_ref_outlived_its_folder_is_not_used_again(project: Path) -> None:
    session(project, [], experiments=0)
    git(project, "update-ref", "refs/overnight/t/1", "HEAD")
    session(project, [edit("LR = 0.5", "LR = 0.2")], experiments=1)
    assert [record.trial for record in rows(project)] == [0, 2]


def test_what_was_paid_for_is_charged_when_the_provider_then_refuses(project: Path) -> None:
    with pytest.raises(ProviderRefused, match="script ended"):
        session(project, [edit("no", "x", cost_usd=0.5)])
    assert [(record.status, record.cost_usd) for record in rows(project)][1:] == [("reject", 0.5)]


def test_what_was_paid_for_is_charged_when_the_session_died_before_it_ran(project: Path) -> None:
    session(project, [], experiments=0)
    SessionFolder(project, "t").trial(1).write_proposal(Proposal((), "half an idea", proposer="llm"), 0.75)
    session(project, [edit("LR = 0.5", "LR = 0.2")], experiments=1)
    assert [(record.status, record.cost_usd) for record in rows(project)][1:] == [("reject", 0.75), ("keep", 0.0)]


def test_a_branch_of_the_users_is_not_overwritten(project: Path) -> None:
    session(project, [edit("LR = 0.5", "LR = 0.2")], experiments=1)
    theirs = git(project, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit-tree", "HEAD^{tree}", "-m", "mine")
    git(project, "update-ref", "refs/heads/overnight/t", theirs)
    session(project, [edit("LR = 0.5", "LR = 0.2"), edit("LR = 0.2", "LR = 0.15")], experiments=2)
    assert git(project, "rev-parse", "overnight/t") == theirs
    assert statuses(project) == ["keep", "keep", "keep"]


def test_refs_of_an_earlier_session_are_not_mixed_with_a_new_one(project: Path) -> None:
    session(project, [], experiments=0)
    shutil.rmtree(project / ".overnight")
    with pytest.raises(UsageError, match="found refs of an earlier session 't'"):
        session(project, [], experiments=0)


def test_rejects_of_an_earlier_run_do_not_end_a_resumed_one(project: Path) -> None:
    bad = [{"text": "no"} for _ in range(80)]
    reason, _ = session(project, bad)
    assert "25 proposals in a row were rejected" in reason
    reason, _ = session(project, [*bad[:75], edit("LR = 0.5", "LR = 0.2")], experiments=1)
    assert statuses(project)[-1] == "keep"


def test_no_repository_is_named_overnight(project: Path) -> None:
    git(project, "branch", "overnight")
    with pytest.raises(UsageError, match="expected no branch named overnight"):
        session(project, [], experiments=0)
