"""The command line as a person or an outside agent meets it: real processes, exit codes, one line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wire_session import project as tiny_project
from sandbox import cgroup
from tests.conftest import CLAIMED, FAKE_TRAIN, git

ROOT = Path(__file__).parent.parent.parent
BETTER = FAKE_TRAIN.replace("LR = 0.5", "LR = 0.2")


def overnight(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    return subprocess.run(
        [sys.executable, "-m", "agent", *args],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT), "OVERNIGHT_CACHE": str(folder / "no-cache")} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def tried(project: Path, text: str, *more: str) -> tuple[int, dict[str, Any]]:
    (project.parent / "candidate").write_text(text)
    done = overnight(project, "try", str(project.parent / "candidate"), "--tag", "t", "--json", *more)
    return done.returncode, json.loads(done.stdout)


def test_try_a_file_then_a_patch_then_the_same_again(project: Path) -> None:
    code, row = tried(project, BETTER, "--budget", "10steps", "--description", "lower LR")
    assert (code, row["status"], row["val_bpb"], row["description"]) == (0, "keep", 1.01, "lower LR")
    hunk = "@@ -1,3 +1,3 @@\n import os, sys\n-LR = 0.2\n+LR = 0.15\n loss = 1.0 + (LR - 0.1) ** 2\n"
    patch = "--- a/train.py\n+++ b/train.py\n" + hunk
    code, row = tried(project, patch)
    assert (code, row["status"]) == (0, "keep")
    assert 1.0025 <= row["val_bpb"] < 1.01  # a small gain is worth a little less than was measured
    code, row = tried(project, BETTER)
    assert (code, row["status"]) == (1, "reject")
    assert "tried before: trial 1 (lower LR) ended as keep with val_bpb 1.010000" in row["reason"]
    code, row = tried(project, patch)
    assert (code, row["status"]) == (1, "reject")
    assert "patch: expected a diff that applies" in row["reason"]
    assert "(LR - 0.1)" in git(project, "show", "overnight/t:train.py")


def test_reading_commands_agree_with_the_ledger(project: Path) -> None:
    tried(project, BETTER, "--budget", "10steps")
    history = json.loads(overnight(project, "history", "--json").stdout)
    assert [row["status"] for row in history] == ["keep", "keep"]
    status = json.loads(overnight(project, "status", "--json").stdout)
    assert (status["experiments"], status["keep"], status["baseline"], status["best"]) == (1, 2, 1.16, 1.01)
    shown = json.loads(overnight(project, "show", "1", "--json").stdout)
    assert "-LR = 0.5\n+LR = 0.2\n" in shown["diff"]
    assert shown["record"]["commit"] == shown["commit"][:7]
    replayed = json.loads(overnight(project, "replay", "t", "--json", "--plot", str(project.parent / "p.png")).stdout)
    assert (replayed["best"], replayed["baseline"]) == (1.01, 1.16)
    assert (project.parent / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "1.010000" in overnight(project, "history").stdout
    assert "LR = 0.2" in overnight(project, "show", "1").stdout
    assert "best" in overnight(project, "status").stdout


def test_replay_knows_what_is_better_wherever_it_is_called(project: Path) -> None:
    with (project / "overnight.toml").open("a") as settings:
        settings.write('direction = "max"\n')
    tried(project, BETTER, "--budget", "10steps")
    found = json.loads(overnight(project / ".overnight" / "t", "replay", "results.tsv", "--json").stdout)
    assert (found["direction"], found["best"]) == ("max", 1.16)


def test_check(project: Path) -> None:
    (project / "overnight.toml").unlink()
    good, bad = project.parent / "good.py", project.parent / "bad.py"
    good.write_text(FAKE_TRAIN)
    bad.write_text("import socket\n" + FAKE_TRAIN)
    assert overnight(project, "check", str(good)).returncode == 0
    done = overnight(project, "check", str(bad), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)[0]["rule"] == "network"
    assert "network" in overnight(project, "check", "--rules").stdout


def test_doctor_names_what_is_missing_and_shows_no_key(project: Path) -> None:
    done = overnight(project, "doctor", "--json", OPENAI_API_KEY="sk-very-secret")
    facts = json.loads(done.stdout)
    assert done.returncode == 1
    assert facts["data"].startswith("missing: data: expected a prepared set")
    assert (facts["OPENAI_API_KEY"], facts["ANTHROPIC_API_KEY"]) == ("set", "not set")
    assert facts["memory_limit"].startswith("by control group" if cgroup.available() else "by watchdog")
    assert "sk-very-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("run", "--tag", "Bad/Tag"), 2, "tag: expected"),
        (("run", "--budget", "fast"), 2, "budget: expected e.g. 300s"),
        (("run", "--until", "7am"), 2, "until: expected a time like 07:00"),
        (("run", "--proposer", "psychic"), 2, "proposer: expected portfolio, llm, knobs, centaur, evolve or command"),
        (("run", "--proposer", "llm"), 2, "llm: expected --model or a key in ANTHROPIC_API_KEY or OPENAI_API_KEY"),
        (("run", "--proposer", "llm", "--model", "claude-x"), 2, "price is known for model 'claude-x'"),
        (("run", "--proposer", "llm", "--model", "openai:gpt-5", "--price", "1,2"), 2, "OPENAI_API_KEY is not set"),
        (("run", "--proposer", "llm", "--model", "scripted:none.jsonl"), 2, "scripted replies at none.jsonl"),
        (("run", "--proposer", "command"), 2, "command: expected --command"),
        (("run", "--from", "nowhere"), 2, "no such revision 'nowhere'"),
        (("run", "--max-usd", "-1"), 2, "max-usd: expected 0 or more"),
        (("try", "nothing.py"), 2, "try: expected a readable text file"),
        (("check", "nothing.py"), 2, "check: expected a file"),
        (("history",), 1, "session: expected one under"),
        (("show", "3", "--tag", "none"), 2, "session: expected one of"),
        (("replay", "nothing.tsv"), 2, "replay: expected a results.tsv or a tag"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bad_input_gets_one_line(project: Path, args: tuple[str, ...], code: int, says: str) -> None:
    done = overnight(project, *args)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_bad_settings_file(project: Path) -> None:
    (project / "overnight.toml").write_text("experiment = 3\n")
    done = overnight(project, "run")
    assert (done.returncode, "found 'experiment'" in done.stderr) == (2, True)
    (project / "overnight.toml").write_text("= nonsense")
    assert "expected TOML" in overnight(project, "run").stderr


def test_outside_a_repository(tmp_path: Path) -> None:
    done = overnight(tmp_path, "status")
    assert (done.returncode, "git: expected a repository" in done.stderr) == (1, True)


def test_without_data(project: Path) -> None:
    (project / "overnight.toml").write_text('[task]\nfixed = ["train.py"]\n')
    done = overnight(project, "run", "--tag", "t")
    assert done.returncode == 1
    assert "data: expected a prepared set under" in done.stderr


@pytest.mark.parametrize("command", [["history"], ["status"], ["run", "--tag", "t"], ["try", "train.py", "--tag", "t"]])
def test_an_unreadable_ledger_stops_everything_and_loses_nothing(project: Path, command: list[str]) -> None:
    tried(project, BETTER, "--budget", "10steps")
    ledger = project / ".overnight" / "t" / "results.tsv"
    ledger.write_bytes(b"\x00\x01\x02 not a ledger \xff\n")
    done = overnight(project, *command)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert ledger.read_bytes() == b"\x00\x01\x02 not a ledger \xff\n"


def test_a_session_that_cannot_begin_leaves_no_trace_of_itself(project: Path) -> None:
    done = overnight(project, "run", "--tag", "t", "--proposer", "llm")
    assert (done.returncode, "found neither" in done.stderr) == (2, True)
    assert not (project / ".overnight" / "t" / "session.json").exists()


def test_a_session_goes_on_with_its_own_settings_or_not_at_all(project: Path) -> None:
    tried(project, BETTER, "--budget", "10steps")
    for flags in (["--seed", "7"], ["--from", "overnight/t"], ["--budget", "20steps"]):
        done = overnight(project, "run", "--tag", "t", "--experiments", "1", *flags)
        assert (done.returncode, "use another --tag" in done.stderr) == (2, True), done.stderr
    (project / "overnight.toml").write_text(CLAIMED + 'direction = "max"\n')
    done = overnight(project, "run", "--tag", "t", "--experiments", "1")
    assert (done.returncode, "another [task]" in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_the_example_of_an_outside_agent_does_what_it_says(data: Path, tmp_path: Path) -> None:
    """Over the tiny train.py, given the lines that the script edits: the import, and two constants in a block.

    Its rate is far too low to begin with, so that the first edit gains many times what a seed does, whatever the seed.
    """
    tiny = (ROOT / "tests" / "tiny_train.py").read_text()
    block = "if prepare.device() is not None:\n    WARMUP_RATIO = 0.0\n    WARMDOWN_RATIO = 0.5\n"
    for old, new in (
        ("import torch\n", "import math\n\nimport torch\n"),
        ("MATRIX_LR = 0.5\n", f"MATRIX_LR = 0.5\n{block}"),
        ("lr=MATRIX_LR)", "lr=MATRIX_LR * math.exp(4 * WARMDOWN_RATIO - 10 * WARMUP_RATIO - 2.5))"),
    ):
        assert tiny.count(old) == 1
        tiny = tiny.replace(old, new)
    (tmp_path / "train.py").write_text(tiny)
    folder = tiny_project(tmp_path / "project", tmp_path / "train.py")
    command = tmp_path / "bin" / "overnight"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "examples" / "outside_agent.sh", "40steps"],
        cwd=folder,
        env=os.environ
        | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        | {"OVERNIGHT_CACHE": str(data.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = tiny.splitlines().index("import math") + 2
    assert f"spy.py:{line} [network] `import socket`" in done.stdout
    assert "refused, as it should be" in done.stdout
    rows = json.loads(overnight(folder, "history", "--tag", "outside", "--json").stdout)
    assert [(row["description"], row["status"]) for row in rows] == [
        ("baseline", "keep"),
        ("longer warm-down", "keep"),
        ("a little warm-up", "discard"),
    ]
    assert rows[0]["val_bpb"] > rows[1]["val_bpb"] < rows[2]["val_bpb"]
    for row in rows[1:]:
        assert f"trial {row['trial']}: {row['status']} at {row['val_bpb']}" in done.stdout
    assert git(folder, "show", "overnight/outside:train.py").count("WARMDOWN_RATIO = 0.9\n") == 1
    assert git(folder, "show", "refs/overnight/outside/2:train.py").count("WARMUP_RATIO = 0.2\n") == 1
    assert list((tmp_path / "project").glob("*.patch")) == []
