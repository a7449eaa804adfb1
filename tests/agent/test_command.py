"""The command proposer with real programs: where they run, what they are given, and that they end."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from agent.errors import ProviderOverloaded, ProviderRefused, ReplyError, UsageError
from agent.proposers.command import Command
from agent.values import Edit, History

PAST = History((), None, {"train.py": "LR = 0.04\nDEPTH = 8\n"})
ANSWER = """description: halve the learning rate
hypothesis: too high
category: optimizer

train.py
<<<<<<< SEARCH
LR = 0.04
=======
LR = 0.02
>>>>>>> REPLACE
"""


def command(tmp_path: Path, program: str, *words: str, timeout: float = 20.0) -> Command:
    """A proposer whose program is this Python source."""
    script = tmp_path / "agent.py"
    script.write_text("import os, sys, pathlib\n" + program)
    return Command(shlex.join([sys.executable, str(script), *words]), program="the brief", timeout=timeout)


def test_the_prompt_comes_on_stdin_and_stderr_is_not_read(tmp_path: Path) -> None:
    program = f"""
text = sys.stdin.read()
assert "the brief" in text and "DEPTH = 8" in text
print("thinking about <<<<<<< SEARCH", file=sys.stderr)
print('\\x1b[32m' + {ANSWER!r})
"""
    proposal = command(tmp_path, program).ask(PAST, ())
    assert proposal.edits == (Edit("train.py", "LR = 0.04", "LR = 0.02"),)
    assert (proposal.description, proposal.category) == ("halve the learning rate", "optimizer")
    assert (proposal.proposer, proposal.cost_usd) == ("command", 0.0)
    assert proposal.reply.startswith("description")


def test_the_prompt_comes_in_a_file_if_asked_for(tmp_path: Path) -> None:
    program = f"""
assert sys.stdin.read() == ""
assert "DEPTH = 8" in pathlib.Path(sys.argv[1].removeprefix("--file=")).read_text()
print({ANSWER!r})
"""
    assert command(tmp_path, program, "--file={prompt_file}").ask(PAST, ()).edits


def test_it_runs_in_an_empty_folder_with_the_users_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_KEY", "secret")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    program = f"""
assert os.listdir() == [] and os.environ["MY_OWN_KEY"] == "secret" and "GIT_DIR" not in os.environ
pathlib.Path("litter").touch()
pathlib.Path({str(tmp_path / "where")!r}).write_text(os.getcwd())
print({ANSWER!r})
"""
    proposer = command(tmp_path, program)
    assert proposer.ask(PAST, ()).edits
    assert proposer.ask(PAST, ()).edits  # the litter of the first run is gone
    assert not Path((tmp_path / "where").read_text()).exists()


def test_a_temporary_folder_in_a_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="TMPDIR"):
        command(tmp_path, "").ask(PAST, ())


def test_words_are_never_read_by_a_shell(tmp_path: Path) -> None:
    program = f"assert sys.argv[1:] == ['$(touch x)', '; exit 3', 'a b']\nprint({ANSWER!r})"
    assert command(tmp_path, program, "$(touch x)", "; exit 3", "a b").ask(PAST, ()).edits


def test_a_failure_shows_the_programs_last_words(tmp_path: Path) -> None:
    program = "print('not logged in', file=sys.stderr)\nsys.exit(7)"
    with pytest.raises(ProviderRefused, match=r"status 7: not logged in") as caught:
        command(tmp_path, program).ask(PAST, ())
    assert "\n" not in str(caught.value)


def test_a_program_that_has_answered_before_is_asked_again_later(tmp_path: Path) -> None:
    program = f"""
import pathlib
seen = pathlib.Path({str(tmp_path / "seen")!r})
if seen.exists():
    sys.exit("usage limit reached")
seen.touch()
print({ANSWER!r})
"""
    proposer = command(tmp_path, program)
    assert proposer.ask(PAST, ()).edits
    with pytest.raises(ProviderOverloaded, match="usage limit reached"):
        proposer.ask(PAST, ())


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProviderRefused, match=r"status 127.*not found"):
        Command("no-such-program-anywhere -p", program="").ask(PAST, ())


def test_a_timeout_ends_it_and_all_it_started(tmp_path: Path) -> None:
    program = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
child.wait()
"""
    started = time.monotonic()
    with pytest.raises(ProviderOverloaded, match="no answer within 2 s"):
        command(tmp_path, program, timeout=2.0).ask(PAST, ())
    assert time.monotonic() - started < 15
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_repair_shows_the_previous_answer_and_the_problem(tmp_path: Path) -> None:
    program = f"""
text = sys.stdin.read()
print({ANSWER!r} if "needs edits" in text and "just words" in text and "DEPTH = 8" in text else "just words")
"""
    proposer = command(tmp_path, program)
    with pytest.raises(ReplyError) as caught:
        proposer.ask(PAST, ())
    salvaged = caught.value.proposal
    assert salvaged is not None
    assert salvaged.reply.strip() == "just words"
    mended = proposer.repair(salvaged, "needs edits")
    assert mended is not None
    assert mended.edits == (Edit("train.py", "LR = 0.04", "LR = 0.02"),)


def test_silence_is_an_unreadable_reply(tmp_path: Path) -> None:
    with pytest.raises(ReplyError, match="empty"):
        command(tmp_path, "pass").ask(PAST, ())


@pytest.mark.parametrize("words", ["", "   ", "claude 'unclosed"])
def test_a_bad_command_line_is_one_line(words: str) -> None:
    with pytest.raises(UsageError, match="proposer's command"):
        Command(words, program="")
