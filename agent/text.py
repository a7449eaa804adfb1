"""Text that a model, a run or a stranger's ledger wrote, made harmless to show."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(
    r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|\[[0-?]*[ -/]*[@-~]|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
)

_RAISED = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*\S.*$", re.MULTILINE)
TAIL_LINES = 40  # of a log that are shown
MESSAGE_LINES = 8  # of an exception, at its beginning and at its end


def plain(text: str) -> str:
    """`text` without terminal escapes, control characters and the invisible signs that reorder or hide text."""
    text = _ESCAPE.sub("", text).replace("\r\n", "\n").encode(errors="replace").decode()
    return "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf"))


def one_line(text: str) -> str:
    """The same, without line breaks, tabs and other runs of space."""
    return " ".join(plain(text).split())


def raised(log: str) -> str:
    """What a crashed run says was wrong, in one line: its last exception, or its last line where none is told of."""
    found = [one_line(match.group().rpartition("\n")[2]) for match in _RAISED.finditer(log)]
    return next(reversed(found or [line for text in log.splitlines() if (line := one_line(text))]), "no output")


def abridged(log: str) -> str:
    """The end of a crashed run's log, its last exception in it.

    Some of torch's messages run on for a hundred lines: then it is those in the middle that are left out.
    """
    start = max((match.end() for match in _RAISED.finditer(log)), default=len(log))
    before, after = log[:start].splitlines(), log[start:].removeprefix("\n").splitlines()
    if len(after) > 2 * MESSAGE_LINES:
        after[MESSAGE_LINES:-MESSAGE_LINES] = [f"[cut: {len(after) - 2 * MESSAGE_LINES} lines]"]
    return "\n".join((before + after)[-TAIL_LINES:])
