"""Proposals from any program that reads a prompt and prints an answer, such as `claude -p` or `codex exec`.

The program is the user's own: it is started with the user's whole environment, its keys included, outside the sandbox,
and what it spends is unknown here, so neither the sandbox's promises nor --max-usd hold for it. What is promised: it
starts in an empty temporary folder that is in no repository, and nothing it started is left when its time is over.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent import prompt
from agent.errors import ProviderOverloaded, ProviderRefused, ReplyError, UsageError
from agent.proposers.opening import opening
from agent.reply import parse_text
from agent.text import plain
from agent.values import History, Proposal, Record
from sandbox.limits import Limits
from sandbox.process import Ending, Execution, run, tail

PROMPT_FILE = "{prompt_file}"
MAX_REPLY_BYTES = 4 << 20
# A constant script: the program's words are its arguments, never part of it. Standard error stays in the log.
REDIRECT = 'input=$1 output=$2; shift 2; exec "$@" < "$input" > "$output"'
NO_ANSWER = "a reply without readable edits"
AGAIN = "This answer cannot be used as it is. Correct it and send it again, complete, in the form described above."


class Command:
    """Implements agent.values.Proposer. Stateless: what a repair needs is in the proposal itself."""

    def __init__(self, command: str, *, program: str, timeout: float = 900.0, name: str = "command") -> None:
        """command: a command line, split as a shell would and run without one. The prompt comes on standard input, or
        in the file that replaces `{prompt_file}`. program: the brief. timeout: seconds for one answer."""
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"the proposer's command {command!r} cannot be split into words: {error}") from None
        if not self._command:
            raise UsageError("the proposer's command is empty: expected something like 'claude -p'")
        self.name = name
        self._program = program
        self._timeout = timeout
        self._answered = False
        self._sources: Mapping[str, str] = {}

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """A new proposal. Raise ReplyError for an unreadable answer, ProviderError if the program failed."""
        self._sources = history.sources
        return self._exchange(opening(history, self._program, in_flight).as_text())

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """Ask again: the same prompt, then the answer it gave, then what is wrong with that."""
        parts = (
            proposal.prompt,
            "# Your previous answer\n" + prompt.fence("answer", proposal.reply),
            f"# {AGAIN}\n" + prompt.fence("what is wrong", problem),
        )
        return self._exchange("\n\n".join(parts))

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Nothing is kept between proposals."""

    def _exchange(self, sent: str) -> Proposal:
        received = plain(self._answer(sent))
        bare = Proposal((), NO_ANSWER, proposer=self.name, prompt=sent, reply=received)
        try:
            parsed = parse_text(received, self._sources or None)
        except ReplyError as error:
            raise ReplyError(str(error), proposal=bare) from error
        return replace(
            bare,
            edits=parsed.edits,
            description=parsed.description,
            hypothesis=parsed.hypothesis,
            category=parsed.category,
            insights=parsed.insights,
        )

    def _answer(self, sent: str) -> str:
        with tempfile.TemporaryDirectory(prefix="overnight-command-") as name:
            base = Path(name)
            _outside_repositories(base)
            empty, question, answer, log = base / "empty", base / "prompt.txt", base / "answer.txt", base / "stderr.txt"
            empty.mkdir()
            question.write_text(sent)
            words = [word.replace(PROMPT_FILE, str(question)) for word in self._command]
            on_stdin = Path(os.devnull) if words != self._command else question
            shell = ["/bin/sh", "-c", REDIRECT, "sh", str(on_stdin), str(answer), *words]
            execution = run(shell, cwd=empty, env=_environment(), limits=Limits(self._timeout), log=log)
            self._check(execution)
            self._answered = True
            return _text(answer)

    def _check(self, execution: Execution) -> None:
        """A program that has answered before is busy or at a limit: asked again later. Another one is refused."""
        if execution.ok:
            return
        last = " | ".join(plain(tail(execution.log_path, 5)).splitlines())[-300:] or "no message"
        if execution.ending is Ending.TIMED_OUT:
            raise ProviderOverloaded(f"{self._command[0]} gave no answer within {self._timeout:.0f} s: {last}")
        how = f"status {execution.returncode}" if execution.ending is Ending.EXITED else execution.ending.value
        if self._answered:
            raise ProviderOverloaded(f"{self._command[0]} failed with {how}: {last}")
        raise ProviderRefused(f"{self._command[0]} failed with {how}: {last}; run it by hand to see what it wants")


def _outside_repositories(folder: Path) -> None:
    """A coding agent started inside a repository would read and edit it."""
    inside = next((parent for parent in folder.resolve().parents if (parent / ".git").exists()), None)
    if inside is not None:
        raise UsageError(
            f"the temporary folder {folder.parent} is inside the repository {inside}: set TMPDIR elsewhere"
        )


def _environment() -> dict[str, str]:
    """The user's own, without the variables by which git finds a repository from anywhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_REPLY_BYTES).decode(errors="replace")
