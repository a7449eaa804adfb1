"""Text that a model, a run or a stranger's ledger wrote, made harmless to show."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(
    r"\x1b(?:\][^\x07\x1b]*(?:\x07|\x1b\\)?|\[[0-?]*[ -/]*[@-~]|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
)


def plain(text: str) -> str:
    """`text` without terminal escapes, control characters and the invisible signs that reorder or hide text."""
    text = _ESCAPE.sub("", text).replace("\r\n", "\n").encode(errors="replace").decode()
    return "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf"))


def one_line(text: str) -> str:
    """The same, without line breaks, tabs and other runs of space."""
    return " ".join(plain(text).split())
