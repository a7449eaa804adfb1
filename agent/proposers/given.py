"""One candidate from outside, as `overnight try` hands it in."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from agent.errors import PatchError, ProviderRefused, UsageError
from agent.values import Edit, History, Proposal, Record

NAME = "try"


class Given:
    """Proposes one file: a whole target, or a unified diff against the incumbent."""

    name = NAME

    def __init__(self, file: Path, target: str, description: str) -> None:
        try:
            self._text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"try: expected a readable text file at {file}, found: {error}") from None
        self._target = target
        self._bare = Proposal((), description or f"try {file.name}", proposer=NAME, reply=self._text)
        self._asked = False

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        if self._asked:
            raise ProviderRefused("try: there is only the one candidate")
        self._asked = True
        if not _is_diff(self._text):
            return self._with({self._target: self._text})
        try:
            patched = apply_diff(history.sources, self._text)
        except PatchError as error:
            raise PatchError(str(error), self._bare) from None
        return self._with({path: text for path, text in patched.items() if text != history.sources[path]})

    def _with(self, files: Mapping[str, str]) -> Proposal:
        edits = tuple(Edit(path, None, text) for path, text in files.items())
        return Proposal(edits, self._bare.description, proposer=NAME, reply=self._text)

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """Whoever handed it in mends it and hands it in again."""
        return None

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Whoever handed it in reads the row."""


def _is_diff(text: str) -> bool:
    lines = text.splitlines()
    return any(a.startswith("--- ") and b.startswith("+++ ") for a, b in pairwise(lines))


def apply_diff(sources: Mapping[str, str], diff: str) -> dict[str, str]:
    """The sources after `git apply` of a unified diff, in a folder that holds nothing else. Raise PatchError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, text in sources.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text.encode())
        command = ["git", "apply", "--whitespace=nowarn", "-"]
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent), "LC_ALL": "C"}
        done = subprocess.run(command, cwd=folder, input=diff.encode(), capture_output=True, env=env, check=False)
        if done.returncode:
            said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
            raise PatchError(f"patch: expected a diff that applies to the incumbent, found: {said}")
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        if strangers := found - set(sources):
            raise PatchError(
                f"patch: expected changes to {', '.join(sources)} only, found {', '.join(sorted(strangers))}"
            )
        if missing := set(sources) - found:
            raise PatchError(f"patch: expected {', '.join(sorted(missing))} to stay, found it deleted")
        return {path: (folder / path).read_bytes().decode() for path in sources}
