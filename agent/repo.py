"""Git objects and refs, by plumbing through GitPython: the user's checkout, index, HEAD and hooks are never touched.

A session's branch is refs/heads/overnight/<tag>, its trials are refs/overnight/<tag>/<n>, so that every trial stays
reachable, discards too. Refs move only from the value they are expected to have.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import git

from agent.errors import StateError, UsageError

IDENTITY = {
    "GIT_AUTHOR_NAME": "overnight",
    "GIT_AUTHOR_EMAIL": "overnight@localhost",
    "GIT_COMMITTER_NAME": "overnight",
    "GIT_COMMITTER_EMAIL": "overnight@localhost",
}
# What is written must be on disk when the ledger says so; and no hook of the user's may run or forbid it.
OURS = ("-c", "core.fsync=all", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0")
NOTHING = "0" * 40


def branch_ref(tag: str) -> str:
    return f"refs/heads/overnight/{tag}"


def trial_ref(tag: str, number: int) -> str:
    return f"refs/overnight/{tag}/{number}"


class Repo:
    """The user's repository, as far as a session needs it."""

    def __init__(self, folder: Path) -> None:
        try:
            self._repo = git.Repo(folder, search_parent_directories=True)
        except git.GitCommandNotFound:
            raise StateError("git: expected it on PATH, found none; install git") from None
        except (git.InvalidGitRepositoryError, git.NoSuchPathError):
            raise StateError(f"git: expected a repository at {folder}, found none; run `git init` and commit") from None
        if self._repo.working_tree_dir is None:
            raise StateError(f"git: expected a repository with a working tree, found a bare one at {folder}")
        self.root = Path(self._repo.working_tree_dir)

    def resolve(self, rev: str) -> str:
        """40 hex of the commit that `rev` names."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
        except git.GitCommandError:
            hint = "commit something first" if rev == "HEAD" else "see `git log`"
            raise UsageError(f"git: expected a commit, found no such revision {rev!r}; {hint}") from None

    def read(self, commit: str, paths: Sequence[str]) -> dict[str, str]:
        """Text of files at a commit."""
        return {path: self._blob(commit, path) for path in paths}

    def _blob(self, commit: str, path: str) -> str:
        try:
            blob = self._repo.commit(commit).tree / path
            return bytes(blob.data_stream.read()).decode("utf-8")
        except KeyError:
            raise StateError(
                f"git: expected {path} in commit {commit[:7]}, found none; commit it or use --from"
            ) from None
        except UnicodeDecodeError:
            raise StateError(f"git: expected {path} in {commit[:7]} to be UTF-8 text, found other bytes") from None

    def commit(self, parent: str, files: Mapping[str, str], message: str, ref: str) -> str:
        """A child of `parent` with `files` replaced, stored under `ref`, which must not exist yet. Its 40 hex."""
        try:
            tree = self._tree(parent, files)
            commit = self._git("commit-tree", tree, "-p", parent, "-F", "-", text=message.replace("\0", " "))
        except git.GitCommandError as error:
            raise StateError(f"git: expected to write objects to {self._repo.git_dir}, found: {_said(error)}") from None
        self.create_ref(ref, commit)
        return commit

    def create_ref(self, ref: str, commit: str) -> None:
        if self.ref(ref) != commit:
            self._move(ref, commit, NOTHING)

    def ref(self, ref: str) -> str | None:
        try:
            return self._git("rev-parse", "--verify", "--quiet", ref)
        except git.GitCommandError:
            return None

    def numbers(self, tag: str) -> list[int]:
        """The trials that have a ref."""
        listing = self._git("for-each-ref", "--format=%(refname:lstrip=3)", f"refs/overnight/{tag}/")
        return [int(name) for name in listing.splitlines() if name.isdigit()]

    def advance(self, tag: str, new: str, ours: Collection[str]) -> str | None:
        """Move the session's branch to `new` if it is at one of `ours`. A line for the user if not, else None."""
        ref = branch_ref(tag)
        name, now = ref.removeprefix("refs/heads/"), self.ref(ref)
        if now == new:
            return None
        if now is not None and now not in ours:
            return f"branch {name} was moved to {now[:7]} by somebody else: left there; the incumbent is {new[:7]}"
        if ref in self._checked_out():
            return f"branch {name} is checked out: it moves to {new[:7]} once you leave it"
        self._move(ref, new, now or NOTHING)
        return None

    def _tree(self, parent: str, files: Mapping[str, str]) -> str:
        """The parent's tree with files replaced, made in an index of our own."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self._git("read-tree", parent, env=index)
            for path, text in files.items():
                blob = self._git("hash-object", "-w", "--stdin", "--no-filters", text=text)
                self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=index)
            return self._git("write-tree", env=index)

    def _move(self, ref: str, new: str, old: str) -> None:
        try:
            self._git("update-ref", ref, new, old)
        except git.GitCommandError as error:
            found = self.ref(ref)
            if (found or NOTHING) == old:
                raise StateError(f"git: expected to move {ref} to {new[:7]}, found: {_said(error)}") from None
            raise StateError(
                f"git: expected {ref} at {old[:7]}, found {found[:7] if found else 'none'}; somebody else moved it: "
                f"put it back or choose another tag ({_said(error)})"
            ) from None

    def _checked_out(self) -> set[str]:
        listing = self._git("worktree", "list", "--porcelain")
        return {line.removeprefix("branch ") for line in listing.splitlines() if line.startswith("branch ")}

    def _git(self, *args: str, text: str | None = None, env: Mapping[str, str] | None = None) -> str:
        with tempfile.TemporaryFile() as stdin:
            stdin.write((text or "").encode())
            stdin.seek(0)
            output = self._repo.git.execute(
                [git.Git.GIT_PYTHON_GIT_EXECUTABLE or "git", *OURS, *args],
                istream=stdin,
                env=_environment() | IDENTITY | dict(env or {}),
            )
        return str(output)


def _environment() -> dict[str, str]:
    """Ours, without the variables that would turn git to another repository or index than the one that was opened."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def _said(error: git.GitCommandError) -> str:
    lines = [line for line in str(error.stderr).replace("stderr:", "").strip(" '\n").splitlines() if line.strip()]
    return lines[0].strip() if lines else "git gave no reason"
