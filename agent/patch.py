"""Apply edits to sources: every edit is located in the original text before any is applied, and nothing is guessed.

A SEARCH has to stand exactly once, on whole tokens: `LR = 0.04` is found neither in `MAX_LR = 0.04` nor in
`LR = 0.045`. Letter for letter comes first; only where that finds nothing may line endings and blanks at line ends
differ. There is no fuzzy match: the nearest lines are shown in the error and never edited.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from agent.errors import PatchError
from agent.values import Edit

# Lexical tokens of Python and its relatives: numbers, names, operators of two or three characters, anything else alone.
_TOKEN = re.compile(
    r"(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?\w*|\w+"
    r"|\*\*=|//=|>>=|<<=|\.\.\.|[-+*/%@&|^<>=!:]=|\*\*|//|<<|>>|->|[^\n]"
)
_MARKER = re.compile(r"^(?:<{7}|>{7}|\|{7})(?: .*)?$|^<{5,9} ?SEARCH\b.*$|^>{5,9} ?REPLACE\b.*$", re.MULTILINE)
_BLANKS = " \t\r"
_SHOWN = 6  # lines quoted in one error
_WIDTH = 120  # characters quoted of a line


@dataclass(frozen=True)
class _Span:
    """Characters [start, end) of a source and what takes their place; `label` names the edit in errors."""

    start: int
    end: int
    text: str
    label: str


def apply(sources: Mapping[str, str], edits: Sequence[Edit], targets: Sequence[str]) -> dict[str, str]:
    """The sources (path -> text) after all edits, which may touch only the paths in `targets`.

    Raises PatchError, written for whoever made the edit, if any of them cannot be applied exactly as it stands.
    """
    if not edits:
        raise PatchError("expected at least one edit, found none: send the lines to change as SEARCH and REPLACE")
    by_path: dict[str, list[tuple[str, Edit]]] = {}
    for number, edit in enumerate(edits, 1):
        label = f"edit {number} of {len(edits)} ({edit.path})"
        _check(label, edit, sources, targets)
        by_path.setdefault(edit.path, []).append((label, edit))
    result = dict(sources)
    for path, labelled in by_path.items():
        result[path] = _edited(sources.get(path, ""), labelled)
    if result == dict(sources):
        raise PatchError("the edits together leave every file as it was: change something, or propose another idea")
    return result


def diff(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Unified diff from `old` to `new` (path -> text), in path order, as `git apply` reads it; "" if equal."""
    return "".join(
        _file_diff(path, old.get(path), new.get(path))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    )


def _check(label: str, edit: Edit, sources: Mapping[str, str], targets: Sequence[str]) -> None:
    if edit.path not in targets:
        raise PatchError(f"{label}: this file may not be edited: put the change into {' or '.join(targets)}")
    if edit.search is not None and not edit.search.strip():
        raise PatchError(f"{label}: SEARCH is empty: copy the lines to replace, or to insert beside, from the file")
    if edit.search is not None and edit.path not in sources:
        raise PatchError(f"{label}: there is no such file yet, so nothing can be found in it: send it whole")
    if edit.search == edit.replace:
        raise PatchError(f"{label}: REPLACE is the same as SEARCH: change something, or leave this edit out")
    if edit.search is None and not edit.replace.strip():
        raise PatchError(f"{label}: the new file is empty: send the whole file")
    here = sources.get(edit.path, "")
    for marker in _MARKER.finditer(edit.replace.replace("\r\n", "\n")):
        if marker.group() not in here:
            raise PatchError(
                f"{label}: REPLACE still holds the marker `{marker.group()}`: send code only, one edit each"
            )


def _edited(source: str, labelled: Sequence[tuple[str, Edit]]) -> str:
    """One file after its edits."""
    newline = "\r\n" if source.count("\r\n") * 2 > source.count("\n") else "\n"
    label, first = labelled[0]
    if first.search is None and len(labelled) == 1:
        return _whole(source, first.replace, newline, label)
    for label, edit in labelled:
        if edit.search is None:
            raise PatchError(f"{label}: a whole-file replacement leaves no room for other edits: send one or the other")
    spans = sorted((_locate(source, label, edit, newline) for label, edit in labelled), key=lambda span: span.start)
    for one, other in pairwise(spans):
        if one.end > other.start:
            line = _line_number(source, other.start)
            raise PatchError(f"{other.label} overlaps {one.label} at line {line}: join the two into one edit")
    return _spliced(source, spans)


def _whole(source: str, text: str, newline: str, label: str) -> str:
    result = _with_newlines(text if text.endswith("\n") else text + "\n", newline)
    if result == source:
        raise PatchError(f"{label}: the new file is the same as the old one: change something, or propose another idea")
    return result


def _spliced(source: str, spans: Sequence[_Span]) -> str:
    parts, position = [], 0
    for span in spans:
        parts += [source[position : span.start], span.text]
        position = span.end
    return "".join([*parts, source[position:]])


def _locate(source: str, label: str, edit: Edit, newline: str) -> _Span:
    """Where `edit` goes in `source`."""
    search = edit.search or ""
    found = list(_exact(source, search)) or list(_tolerant(source, search))
    if not found:
        raise PatchError(_not_found(source, search, label))
    if len(found) > 1:
        lines = [_line_number(source, start) for start, _ in found]
        raise PatchError(
            f"{label}: SEARCH occurs {len(found)} times, expected once: {_quoted(source, lines)}; "
            "add lines before or after it until only one place fits"
        )
    span = _span(source, *found[0], _with_newlines(edit.replace, newline), label)
    if source[span.start : span.end] == span.text:
        raise PatchError(f"{label}: REPLACE differs from the file in nothing: change something, or leave this edit out")
    return span


def _span(source: str, start: int, end: int, text: str, label: str) -> _Span:
    """The span to replace; a deletion takes the whole lines, and a line is never joined to the next by accident."""
    ends_line = source.endswith("\n", start, end)
    if not text:
        stop = end if ends_line else _line_end(source, end)
        head = source[source.rfind("\n", 0, start) + 1 : start]
        if not head.strip(" \t") and not source[end:stop].strip():
            return _Span(start - len(head), stop, "", label)
    if ends_line and not text.endswith("\n"):
        text += "\r\n" if source.endswith("\r\n", start, end) else "\n"
    return _Span(start, end, text, label)


def _exact(source: str, search: str) -> Iterator[tuple[int, int]]:
    for start in _starts(source, search):
        if _on_tokens(source, start, start + len(search)):
            yield start, start + len(search)


def _starts(source: str, search: str) -> Iterator[int]:
    start = source.find(search)
    while start >= 0:
        yield start
        start = source.find(search, start + 1)


def _tolerant(source: str, search: str) -> Iterator[tuple[int, int]]:
    """Places that differ from `search` only in line endings and in blanks at line ends."""
    *lines, last = search.replace("\r\n", "\n").split("\n")
    pattern = "".join(re.escape(line.rstrip(_BLANKS)) + r"[ \t]*\r?\n" for line in lines[:-1])
    if lines:
        pattern += re.escape(lines[-1].rstrip(_BLANKS)) + (r"[ \t]*\r?\n" if last else r"[ \t]*(?:\r?\n|\Z)")
    pattern += re.escape(last.rstrip(_BLANKS)) + (r"[ \t]*(?=\r?\n|\Z)" if last != last.rstrip(_BLANKS) else "")
    # The look-ahead finds places that overlap each other, too: they make a SEARCH as ambiguous as others do.
    for match in re.finditer(f"(?=({pattern}))", source):
        if _on_tokens(source, *match.span(1)):
            yield match.span(1)


def _on_tokens(source: str, start: int, end: int) -> bool:
    return _at_edge(source, start) and _at_edge(source, end)


def _at_edge(source: str, offset: int) -> bool:
    """Whether no token reaches across `offset`."""
    begin = source.rfind("\n", 0, offset) + 1
    stop = source.find("\n", offset)
    tokens = _TOKEN.finditer(source, begin, len(source) if stop < 0 else stop)
    return not any(token.start() < offset < token.end() for token in tokens)


def _not_found(source: str, search: str, label: str) -> str:
    inside = [_line_number(source, start) for start in _starts(source, search)]
    if inside:
        return (
            f"{label}: SEARCH occurs only as a part of longer tokens: {_quoted(source, inside)}; "
            "copy whole names and numbers from the file"
        )
    have = [line.strip() for line in source.split("\n")]
    wanted = [line.strip()[:_WIDTH] for line in search.split("\n") if line.strip()]
    missing = next((line for line in wanted if line not in {text[:_WIDTH] for text in have}), None)
    if missing is None:
        near = [number for number, line in enumerate(have, 1) if line[:_WIDTH] == wanted[0]]
        advice = "the lines are there, but not with this indentation or not next to each other"
    else:
        close = difflib.get_close_matches(missing, {text[:_WIDTH] for text in have if text}, n=3, cutoff=0.4)
        near = [number for number, line in enumerate(have, 1) if line[:_WIDTH] in close]
        advice = f"the file has no line `{missing}`"
    nearest = f"; nearest: {_quoted(source, near)}" if near else ""
    return f"{label}: SEARCH does not occur: {advice}{nearest}; copy SEARCH letter for letter from the file"


def _quoted(source: str, numbers: Sequence[int]) -> str:
    """Lines with their numbers (from 1), for an error."""
    lines = source.split("\n")
    distinct = list(dict.fromkeys(numbers))
    shown = "; ".join(f"line {number} `{lines[number - 1].strip()[:_WIDTH]}`" for number in distinct[:_SHOWN])
    return shown + (f"; and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else "")


def _line_number(source: str, offset: int) -> int:
    return source.count("\n", 0, offset) + 1


def _line_end(source: str, offset: int) -> int:
    """Just behind the newline that ends the line of `offset`."""
    found = source.find("\n", offset)
    return len(source) if found < 0 else found + 1


def _with_newlines(text: str, newline: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", newline)


def _file_diff(path: str, old: str | None, new: str | None) -> str:
    lines = difflib.unified_diff(
        _lines(old or ""),
        _lines(new or ""),
        "/dev/null" if old is None else f"a/{path}",
        "/dev/null" if new is None else f"b/{path}",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(text: str) -> list[str]:
    """Lines with their newline; not by `splitlines`, which also breaks at form feeds, where git does not."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
