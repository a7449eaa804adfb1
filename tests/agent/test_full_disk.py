"""Sessions whose disk fills up: one line that says so, and with room again they end as if it had never been full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.ledger import Ledger
from tests.conftest import commit_all

ROOT = Path(__file__).parent.parent.parent
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
can_mount = pytest.mark.skipif(
    sys.platform != "linux" or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="needs user namespaces, to mount a small disk",
)
# First on a disk that is too small, then on the same one made larger.
TWICE = """
mount -t tmpfs -o size={size} none .overnight
{run} || echo "ended with $?"
mount -o remount,size=64m none .overnight
{run}
cat .overnight/t/results.tsv > ../ledger.tsv
"""


def run_twice(project: Path, size: str, **env: str) -> subprocess.CompletedProcess[str]:
    (project / ".overnight").mkdir()
    flags = "--tag t --proposer knobs --experiments 3 --sandbox process"
    run = f"{sys.executable} -m agent run {flags} --budget 20steps"
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", TWICE.format(size=size, run=run)],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        check=False,
    )


@can_mount
@pytest.mark.parametrize("size", ["200k", *(pytest.param(size, marks=[pytest.mark.slow]) for size in ("20k", "260k"))])
def test_a_session_goes_on_once_there_is_room(project: Path, size: str) -> None:
    done = run_twice(project, size)
    assert done.returncode == 0, done.stderr
    assert "ended with 1" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "free the disk and run again" in done.stderr or "free some disk space and resume" in done.stderr
    rows = Ledger(project.parent / "ledger.tsv").records()
    assert [row.trial for row in rows] == [0, 1, 2, 3]
    assert {row.status for row in rows} <= {"keep", "discard"}


@pytest.mark.slow
@can_mount
def test_a_checkpoint_that_finds_no_room_is_not_the_candidates_fault(project: Path, data: Path) -> None:
    (project / "overnight.toml").unlink()
    for source, name in (("tests/tiny_train.py", "train.py"), ("prepare.py", "prepare.py")):
        (project / name).write_bytes((ROOT / source).read_bytes())
    commit_all(project)
    done = run_twice(project, "330k", OVERNIGHT_CACHE=str(data.parent.parent))
    assert done.returncode == 0, done.stderr
    assert "ended with 1" in done.stdout
    assert "No space left on device" in done.stderr
    rows = Ledger(project.parent / "ledger.tsv").records()
    assert {row.status for row in rows} <= {"keep", "discard"}, [row.reason for row in rows]
