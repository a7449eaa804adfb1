"""A session whose keeps are audited, and `overnight audit` on what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import Task
from agent.folder import CHECKPOINT, SessionFolder
from agent.judge import after_audit
from agent.values import Audit, Record, Status, Verdict
from benchmarks.wire_session import project
from tests.attacks.forgeries import PEEK
from tests.attacks.metric import FORWARD

ROOT = Path(__file__).parents[2]
KEEP = Verdict(Status.KEEP, "better")
BEFORE = Audit(4096, 2.0, 2.0, 1e-6, 1.50)


def overnight(folder: Path, cache: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OVERNIGHT_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "agent", *args], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def reply(search: str, replace: str, description: str) -> str:
    edits = [{"path": "train.py", "search": search, "replace": replace}]
    made = {"description": description, "hypothesis": "h", "category": "optimizer", "edits": edits}
    return json.dumps({"tool": made}) + "\n"


@pytest.fixture(scope="module")
def session(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A repository with a finished session, the cache, and what was printed: a keep, then a model that looks ahead."""
    folder, cache = (
        project(tmp_path_factory.mktemp("audit") / "project", ROOT / "tests" / "tiny_train.py"),
        data.parents[1],
    )
    script = folder.parent / "script.jsonl"
    peek = PEEK.format(strength="3.0", where="").strip("\n")
    script.write_text(
        reply("MATRIX_LR = 0.5", "MATRIX_LR = 5.0", "learn faster")
        + reply(FORWARD, peek, "look ahead")
        + reply("MATRIX_LR = 5.0", "MATRIX_LR = 0.1", "slow")
    )
    command = ["run", "--tag", "t", "--proposer", "llm", "--model", f"scripted:{script}", "--budget", "40steps"]
    done = overnight(folder, cache, *command, "--experiments", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, cache, done.stdout


def rows(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / ".overnight/t/results.tsv").read_text().splitlines()[1:]]


@pytest.mark.slow
def test_keeps_are_audited_and_can_be_audited_again(session: tuple[Path, Path, str]) -> None:
    """One test, for its session takes long: a model that looks ahead, a forged row, a checkpoint that is gone."""
    folder, cache, printed = session
    assert [row[3] for row in rows(folder)] == ["keep", "keep", "reject", "discard"]
    assert "when it could not look ahead" in printed
    assert rows(folder)[2][1] == "0.000000"
    trials = folder / ".overnight/t/trials"
    looked_ahead = json.loads((trials / "2/runs/0/metrics.json").read_text())
    assert looked_ahead["val_bpb"] < float(rows(folder)[1][1])  # it would have won
    for run in SessionFolder(folder, "t").trial(1).runs():
        assert json.loads((run / "audit.json").read_text())["problem"] == ""
    last = SessionFolder(folder, "t").trial(1).runs()[-1]
    facts = json.loads((last / "audit.json").read_text())
    assert (facts["probes"], facts["problem"]) == (4096, "")
    assert facts["worst"] < 1e-4
    assert 1 < facts["held_bpb"] < 8

    ledger = folder / ".overnight/t/results.tsv"
    text, honest = ledger.read_text(), rows(folder)[1][1]
    ledger.write_text(text.replace(honest, f"{float(honest) - 0.01:.6f}"))
    forged = overnight(folder, cache, "audit", "t", "--json")
    assert forged.returncode == 1
    checks = json.loads(forged.stdout)
    assert [(check["trial"], bool(check["problem"])) for check in checks] == [(0, False), (1, True)]
    assert f"found {honest}" in checks[1]["problem"]

    ledger.write_text(text)
    sealed = (last / CHECKPOINT).read_bytes()
    (last / CHECKPOINT).write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    swapped = json.loads(overnight(folder, cache, "audit", "t", "--json").stdout)
    assert [check["problem"][:40] for check in swapped] == ["", "expected the checkpoint that was sealed,"]

    (last / CHECKPOINT).unlink()
    again = overnight(folder, cache, "audit", "t", "--retrain")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("(holds)") == 2


@pytest.mark.parametrize(
    ("audit", "status", "reason"),
    [
        (Audit(4096, 2.0, 2.0, 1e-6, 1.49), Status.KEEP, "better"),
        (Audit(4096, 2.0, 2.0, 0.04, 1.49), Status.REJECT, "0.0400 apart at worst"),
        (Audit(4096, 2.0, 2.00001, 1e-4, 1.49), Status.REJECT, "2.000000 nats a token were scored, 2.000010 when"),
        (Audit(4096, 2.0, 2.01, 0.01, 1.49), Status.REJECT, "2.000000 nats a token were scored, 2.010000 when"),
        (Audit(4096, 2.0, 1.99, 0.01, 1.49), Status.REJECT, "2.000000 nats a token were scored, 1.990000 when"),
        (Audit(0, None, None, None, None, "exit 1: x"), Status.REJECT, "audit: exit 1: x"),
        (Audit(4096, 2.0, 2.0, 1e-6, 1.51), Status.DISCARD, "+0.010000 on the held-back split: no gain"),
    ],
)
def test_what_an_audit_leaves_of_a_keep(audit: Audit, status: Status, reason: str) -> None:
    verdict = after_audit(KEEP, audit, BEFORE, "cpu", Task())
    assert verdict.status is status
    assert reason in verdict.reason
    worse = Audit(4096, 2.0, 2.0, 1e-6, 9.9)
    assert after_audit(KEEP, worse, None, "cpu", Task()) is KEEP  # a baseline has nothing before it


def test_a_keep_after_an_incumbent_whose_audit_is_gone_says_so(tmp_path: Path) -> None:
    incumbent = Record("0" * 7, 1.9, 0.0, "keep", "baseline", trial=0)
    before = SessionFolder(tmp_path, "t").audit_of(incumbent)
    verdict = after_audit(KEEP, Audit(4096, 2.0, 2.0, 1e-6, 1.49), before, "cpu", Task())
    assert verdict.status is Status.KEEP
    assert verdict.reason == "better; the incumbent's audit is gone: its held-back score is unknown"
    assert SessionFolder(tmp_path, "t").audit_of(None) is None
