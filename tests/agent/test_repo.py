"""Git by plumbing: what is written is there, and nothing of the user's is touched."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from agent.errors import StateError, UsageError
from agent.repo import Repo, branch_ref, trial_ref
from tests.conftest import commit_all, git


def fingerprint(folder: Path) -> dict[str, str]:
    """Everything in the checkout and in .git that is the user's: not the object store, not our refs."""
    skip = (
        "/.git/objects/",
        "/.git/refs/overnight/",
        "/.git/refs/heads/overnight/",
        "/.overnight/",
        "/.git/logs/refs/",
    )
    files = [path for path in folder.rglob("*") if path.is_file() and not any(part in str(path) for part in skip)]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dirty(folder: Path) -> None:
    """A checkout in the middle of work: changed, staged, untracked, hooks that refuse everything, signing required."""
    (folder / "train.py").write_text("LR = 99\n")
    (folder / "staged.txt").write_text("staged")
    git(folder, "add", "staged.txt")
    (folder / "untracked.txt").write_text("mine")
    for hook in ("pre-commit", "commit-msg", "post-commit", "reference-transaction", "post-checkout"):
        path = folder / ".git" / "hooks" / hook
        path.write_text('#!/bin/sh\necho ran >> "$(git rev-parse --git-dir)/hook-ran"\nexit 1\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    git(folder, "config", "commit.gpgsign", "true")
    git(folder, "config", "user.signingkey", "nobody")


def test_commit_and_advance_leave_the_users_work_alone(project: Path) -> None:
    dirty(project)
    before, head = fingerprint(project), git(project, "rev-parse", "HEAD")
    repo = Repo(project)
    commit = repo.commit(head, {"train.py": "LR = 1\n", "deep/er.py": "x\n"}, "lower\n\nwhy", trial_ref("t", 1))
    assert repo.advance("t", commit, {head}) is None
    assert fingerprint(project) == before
    assert not (project / ".git" / "hook-ran").exists()
    assert repo.read(commit, ["train.py", "deep/er.py"]) == {"train.py": "LR = 1\n", "deep/er.py": "x\n"}
    assert git(project, "log", "-1", "--format=%an <%ae> %s", "overnight/t") == "overnight <overnight@localhost> lower"
    assert git(project, "rev-parse", "refs/overnight/t/1") == commit


def test_every_trial_stays_reachable_after_gc(project: Path) -> None:
    repo, head = Repo(project), git(project, "rev-parse", "HEAD")
    commits = [repo.commit(head, {"train.py": f"LR = {n}\n"}, "x", trial_ref("t", n)) for n in range(3)]
    git(project, "gc", "-q", "--prune=now")
    assert [git(project, "cat-file", "-t", commit) for commit in commits] == ["commit"] * 3


def test_a_branch_that_somebody_moved_is_not_overwritten(project: Path) -> None:
    repo, head = Repo(project), git(project, "rev-parse", "HEAD")
    ours = repo.commit(head, {"train.py": "LR = 1\n"}, "x", trial_ref("t", 1))
    git(project, "update-ref", branch_ref("t"), head)
    assert "moved to" in (repo.advance("t", ours, {ours}) or "")
    assert git(project, "rev-parse", branch_ref("t")) == head


def test_a_trial_ref_is_never_reused(project: Path) -> None:
    repo, head = Repo(project), git(project, "rev-parse", "HEAD")
    repo.commit(head, {"train.py": "LR = 1\n"}, "x", trial_ref("t", 1))
    with pytest.raises(StateError, match="refs/overnight/t/1"):
        repo.commit(head, {"train.py": "LR = 2\n"}, "y", trial_ref("t", 1))


def test_a_checked_out_branch_waits(project: Path) -> None:
    repo, head = Repo(project), git(project, "rev-parse", "HEAD")
    git(project, "checkout", "-q", "-b", "overnight/t")
    ours = repo.commit(head, {"train.py": "LR = 1\n"}, "x", trial_ref("t", 1))
    assert "checked out" in (repo.advance("t", ours, {head}) or "")
    assert git(project, "rev-parse", "overnight/t") == head


def test_bytes_survive(project: Path) -> None:
    """Line endings, missing final newlines and attributes that would convert them do not change what is stored."""
    (project / ".gitattributes").write_text("*.py text eol=crlf\n")
    head = commit_all(project, "attributes")
    text = "a = 1\r\nb = 'é'\n\tc"
    repo = Repo(project)
    assert repo.read(repo.commit(head, {"train.py": text}, "x", trial_ref("t", 1)), ["train.py"]) == {"train.py": text}


@pytest.mark.parametrize(("rev", "found"), [("HEAD~9", "HEAD~9"), ("--help", "--help"), ("nonsense", "nonsense")])
def test_unknown_revision(project: Path, rev: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        Repo(project).resolve(rev)


def test_not_a_repository(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="git init"):
        Repo(tmp_path)


def test_repository_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(UsageError, match="commit something first"):
        Repo(tmp_path).resolve("HEAD")


def test_missing_file(project: Path) -> None:
    repo = Repo(project)
    with pytest.raises(StateError, match=r"prepare\.py in commit"):
        repo.read(repo.resolve("HEAD"), ["prepare.py"])
