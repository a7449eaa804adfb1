"""From what a model sent to edits: a tool call, SEARCH/REPLACE blocks in text, or one whole file in a fence.

Text rules. Marker lines stand at the start of a line. A line of exactly seven `=` divides SEARCH from REPLACE. Code may
hold such lines itself (a heading in a docstring); then the divider is the last one before which all lines stand in the
file as they are, and the first one if there is none such. The whole-file form counts only where no marker is seen.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import ReplyError
from agent.text import plain
from agent.values import CATEGORIES, Edit

DESCRIPTION_LIMIT = 200
HYPOTHESIS_LIMIT = 1000
INSIGHTS_LIMIT = 4000

TEXT_FORMAT = (
    """\
description: one line saying what changes
hypothesis: why it should improve the metric
category: one of """
    + ", ".join(CATEGORIES)
    + """
insights: only if there is something to remember: all your notes, up to the next empty line

train.py
<<<<<<< SEARCH
lines copied letter for letter from the file, enough of them to fit in one place only
=======
the lines that take their place; nothing to delete them
>>>>>>> REPLACE
"""
)

TOOL: dict[str, Any] = {
    "name": "propose",
    "description": "Propose one change of the training script, as edits that are applied to it all together.",
    "parameters": {
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": "One line: what changes. At most 200 characters."},
            "hypothesis": {"type": "string", "description": "Why this should improve the metric."},
            "category": {"type": "string", "enum": list(CATEGORIES)},
            "insights": {
                "type": "string",
                "description": "Optional: all your notes for later proposals, in the place of the notes so far. "
                "At most 4,000 characters. Leave it out to keep them.",
            },
            "edits": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "path": {"type": "string", "description": "The file to edit, such as train.py."},
                        "search": {
                            "type": "string",
                            "description": "Whole lines copied letter for letter from the file as it was shown. "
                            "They must stand there exactly once: add neighbouring lines until they do.",
                        },
                        "replace": {
                            "type": "string",
                            "description": "The lines that take their place. Empty deletes them.",
                        },
                    },
                    "required": ["path", "search", "replace"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["description", "hypothesis", "category", "edits"],
        "additionalProperties": False,
    },
}

_OPEN = re.compile(r"<{5,9} ?SEARCH\s*")
_DIVIDER = re.compile(r"={7}\s*")
_CLOSE = re.compile(r">{5,9} ?REPLACE\s*")
_FENCE = re.compile(r"\s*(?:```|~~~)[\w+-]*\s*")
_PATH = re.compile(r"[#*`\s]*(?:\./)?([\w./-]*\w\.\w+)[`*:\s]*")
_HEADER = re.compile(r"[-*#\s]*(description|hypothesis|category|insights)[*\s]*:[*\s]*(.*)", re.IGNORECASE)
_WHOLE = re.compile(r"^```(?:python|py)[ \t]*\r?\n(.*?)^```[ \t]*\r?$", re.MULTILINE | re.DOTALL)
_ELIDED = re.compile(
    r"^\s*#\s*(?:\.{3}|…)\s*(?:$|.*\b(?:rest|existing|unchanged|same|remain\w*|code)\b.*$)",
    re.MULTILINE | re.IGNORECASE,
)
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[@-_]?")


@dataclass(frozen=True)
class ParsedReply:
    """What a reply proposes: edits and the words that go into the ledger, cleaned (one line each, no control signs).

    insights: lines, at most INSIGHTS_LIMIT characters.
    """

    edits: tuple[Edit, ...]
    description: str
    hypothesis: str = ""
    category: str = "other"
    insights: str = ""


def parse_tool_call(arguments: str | Mapping[str, Any], *, truncated: bool = False) -> ParsedReply:
    """The arguments of a call of `TOOL`, as JSON text or decoded. truncated: the provider cut the reply off.

    Raises ReplyError saying what to send instead.
    """
    if truncated:
        raise ReplyError(_CUT_OFF)
    call = _decoded(arguments, "the arguments of `propose`") if isinstance(arguments, str) else arguments
    if not isinstance(call, Mapping):
        raise ReplyError(f"expected an object as arguments of `propose`, found {_kind(call)}: {_CALL_ADVICE}")
    edits = call.get("edits")
    if isinstance(edits, str):  # smaller models often encode the list a second time
        edits = _decoded(edits, "`edits`")
    if not isinstance(edits, list) or not edits:
        raise ReplyError(f"expected a list of at least one edit in `edits`, found {_kind(edits)}: {_CALL_ADVICE}")
    return _reply([_edit(number, edit) for number, edit in enumerate(edits, 1)], call)


def parse_text(text: str, sources: Mapping[str, str] | None = None, *, truncated: bool = False) -> ParsedReply:
    """A reply in words with SEARCH/REPLACE blocks, or with one whole file.

    sources: the files that may be edited, path -> text, as the model saw them; default train.py of unknown content.
    truncated: the provider cut the reply off. Raises ReplyError saying what to send instead.
    """
    if not text.strip():
        raise ReplyError(f"the reply is empty: {_TEXT_ADVICE}")
    if truncated:
        raise ReplyError(_CUT_OFF)
    sources = {"train.py": ""} if sources is None else sources
    lines = text.replace("\r\n", "\n").split("\n")
    outside, edits = _blocks(lines, sources)
    if edits:
        return _reply(edits, _headers(outside))
    return _reply([_whole_file(text, sources)], _headers(_WHOLE.sub("\n", text).split("\n")))


_TEXT_ADVICE = (
    "send `description:`, `hypothesis:` and `category:` lines, then for each edit the file's path on its own line, "
    "`<<<<<<< SEARCH`, lines copied from the file, `=======`, the new lines, `>>>>>>> REPLACE`"
)
_CALL_ADVICE = (
    'send {"description", "hypothesis", "category", "edits": [{"path", "search", "replace"}]}, all of it text'
)
_CUT_OFF = (
    "the reply was cut off at the length limit: send it again, shorter, with small edits instead of whole functions"
)


def _decoded(text: str, what: str) -> Any:
    try:
        return json.loads(json.dumps(json.loads(text, strict=False), ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ReplyError(
            f"expected JSON as {what}, found {len(text)} characters with {error}: {_CALL_ADVICE}"
        ) from None


def _kind(value: object) -> str:
    return "nothing" if value is None else "an empty list" if value == [] else f"a {type(value).__name__}"


def _edit(number: int, edit: object) -> Edit:
    if not isinstance(edit, Mapping):
        raise ReplyError(f"edit {number}: expected an object, found {_kind(edit)}: {_CALL_ADVICE}")
    path, search, replace = (edit.get(key) for key in ("path", "search", "replace"))
    if not isinstance(path, str) or not isinstance(search, str) or not isinstance(replace, str):
        odd = next(key for key in ("path", "search", "replace") if not isinstance(edit.get(key), str))
        raise ReplyError(f"edit {number}: expected text as `{odd}`, found {_kind(edit.get(odd))}: {_CALL_ADVICE}")
    return Edit(path.strip().removeprefix("./"), search, replace)


def _reply(edits: Sequence[Edit], fields: Mapping[str, object]) -> ParsedReply:
    for number, edit in enumerate(edits, 1):
        left_out = next((found.group() for found in _ELIDED.finditer(edit.replace)), None)
        if left_out is not None and left_out not in (edit.search or ""):
            raise ReplyError(
                f"edit {number} leaves code out (`{left_out.strip()}`): write out every line that shall stay"
            )
    description = _clean(fields.get("description"), DESCRIPTION_LIMIT)
    if not description:
        raise ReplyError("expected a description of the change, found none: send it again with one line `description`")
    category = _clean(fields.get("category"), DESCRIPTION_LIMIT).lower().strip("`*. ")
    return ParsedReply(
        tuple(edits),
        description,
        _clean(fields.get("hypothesis"), HYPOTHESIS_LIMIT),
        category if category in CATEGORIES else "other",
        _notes(fields.get("insights")),
    )


def _notes(value: object) -> str:
    """Several lines of plain text, cut where they are too long."""
    text = plain(value).strip() if isinstance(value, str) else ""
    text = "" if text.lower().strip("-.* ") in ("", "none", "n/a") else text
    cut = f"\n[cut: more than {INSIGHTS_LIMIT} characters]"
    return text if len(text) <= INSIGHTS_LIMIT else text[: INSIGHTS_LIMIT - len(cut)].rstrip() + cut


def _clean(value: object, limit: int) -> str:
    """One line of plain text: no terminal escapes, control, format or surrogate characters; runs of blanks are one."""
    text = _ESCAPES.sub(" ", value if isinstance(value, str) else "")
    plain = "".join(" " if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else sign for sign in text)
    line = " ".join(plain.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _headers(lines: Sequence[str]) -> dict[str, str]:
    """The header lines, each up to the next blank line, fence or header; the first of a name counts."""
    found: dict[str, str] = {}
    current: str | None = None
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header:
            name = header.group(1).lower()
            current = None if name in found else name
            if current:
                found[current] = header.group(2)
        elif not line.strip() or _FENCE.fullmatch(line) or _PATH.fullmatch(line):
            current = None
        elif current:
            found[current] += "\n" + line
    return found


def _blocks(lines: Sequence[str], sources: Mapping[str, str]) -> tuple[list[str], list[Edit]]:
    """The lines outside of all blocks, and one edit for each block."""
    outside: list[str] = []
    edits: list[Edit] = []
    start = 0
    for opened, closed in _bounds(lines):
        before = lines[start:opened]
        path = _path(before, edits, sources, opened + 1)
        edits.append(_block(lines[opened + 1 : closed], path, sources.get(path, ""), opened + 1))
        outside += [*before, ""]
        start = closed + 1
    return [*outside, *lines[start:]], edits


def _bounds(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Indices of the SEARCH and REPLACE markers of each block."""
    opened: int | None = None
    for index, line in enumerate(lines):
        if _OPEN.fullmatch(line):
            if opened is not None:
                raise ReplyError(
                    f"the block at line {opened + 1} of the reply has no `>>>>>>> REPLACE`: {_TEXT_ADVICE}"
                )
            opened = index
        elif _CLOSE.fullmatch(line):
            if opened is None:
                raise ReplyError(f"`>>>>>>> REPLACE` at line {index + 1} of the reply has no SEARCH: {_TEXT_ADVICE}")
            yield opened, index
            opened = None
    if opened is not None:
        raise ReplyError(
            f"the block at line {opened + 1} of the reply has no end, as if the reply was cut off: "
            "send all blocks again, each closed by `>>>>>>> REPLACE`"
        )


def _path(before: Sequence[str], edits: Sequence[Edit], sources: Mapping[str, str], number: int) -> str:
    """The path named just above a block (a fence may stand between), else the last one's, else the only file."""
    near = [line for line in before if line.strip() and not _FENCE.fullmatch(line)]
    named = _PATH.fullmatch(near[-1]) if near else None
    if named:
        return named.group(1)
    if edits:
        return edits[-1].path
    if len(sources) == 1:
        return next(iter(sources))
    raise ReplyError(
        f"the block at line {number} of the reply does not say which file it edits: "
        f"put {' or '.join(sorted(sources))} on a line of its own before it"
    )


def _block(body: Sequence[str], path: str, source: str, number: int) -> Edit:
    dividers = [index for index, line in enumerate(body) if _DIVIDER.fullmatch(line)]
    if not dividers:
        raise ReplyError(f"the block at line {number} of the reply has no line `=======`: {_TEXT_ADVICE}")
    standing = "\n".join(["", *(line.rstrip() for line in source.split("\n")), ""])
    fitting = [
        index for index in dividers if "\n".join(["", *(line.rstrip() for line in body[:index]), ""]) in standing
    ]
    divider = (fitting or [dividers[0]])[-1] if len(dividers) > 1 else dividers[0]
    return Edit(path, "\n".join(body[:divider]), "\n".join(body[divider + 1 :]))


def _whole_file(text: str, sources: Mapping[str, str]) -> Edit:
    """The fallback: exactly one fenced python block that is a module with a `build_model`."""
    wholes = [code for code in _WHOLE.findall(text) if re.search(r"^def build_model\b", code, re.MULTILINE)]
    if len(wholes) != 1 or len(sources) != 1 or text.count("```") % 2:
        raise ReplyError(f"expected edits, found {len(text)} characters without a complete one: {_TEXT_ADVICE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is the author's business
            ast.parse(wholes[0])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ReplyError(
            f"the whole file in the reply is no Python ({error}): send edits instead: {_TEXT_ADVICE}"
        ) from None
    return Edit(next(iter(sources)), None, wholes[0])
