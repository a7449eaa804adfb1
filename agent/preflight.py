"""Checks of a candidate's source before any budget is spent: does it parse, keep the contract, and stay in its lane?

`agent.rules` says what is checked and why. Only what is new relative to the parent is reported, compared by rule and
code, so nobody is blamed for what stood there before. Pure: nothing of the candidate is imported or run.

Parsing by libcst is most of the work, so each top-level statement is parsed by itself and remembered: of a candidate
only what differs from its parent is read again.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import libcst as cst

from agent import rules
from agent.conduct import Breach, breaches
from agent.errors import UsageError
from agent.facts import Facts
from agent.rules import PROFILES, RULES

__all__ = ["PROFILES", "RULES", "Finding", "check", "digest"]

_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]|\r(?!\n)"
)
_CODING = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")  # PEP 263; counts in the first two lines
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_REMEMBERED = 256  # top-level statements; a training script has about 60
_QUOTED = 80  # characters of code in a message


@dataclass(frozen=True)
class Finding:
    """A rule (a key of RULES) broken at a line (from 1); the message tells a model what is wrong and what to do."""

    rule: str
    line: int
    message: str


def check(source: str, parent: str, profile: str = "train", imports: Collection[str] = ()) -> tuple[Finding, ...]:
    """What `source` breaks of the profile's rules and its `parent` did not, in the order of lines.

    imports: top-level modules this task allows besides the usual ones. Where the parent is no Python, the source need
    not be. Raises UsageError for an unknown profile.
    """
    if profile not in PROFILES:
        raise UsageError(f"expected a profile of {', '.join(PROFILES)}, found {profile!r}: name one of them")
    extra = frozenset(imports)
    with _without_collector():
        before, after = _inspect(parent, extra), _inspect(source, extra)
    known = Counter((old.rule, old.code) for old in before)
    wanted = PROFILES[profile] - ({"syntax"} & {rule for rule, _ in known})
    found = []
    for breach in sorted(after, key=lambda breach: breach.line):
        known[breach.rule, breach.code] -= 1
        if known[breach.rule, breach.code] < 0 and breach.rule in wanted:
            found.append(Finding(breach.rule, breach.line, f"`{breach.code[:_QUOTED]}`: {RULES[breach.rule]}"))
    return tuple(found)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Trees are made here by the ten thousand and none is garbage yet: looking for some costs a sixth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def digest(source: str) -> str:
    """sha256 (64 hex) of what Python makes of `source`: comments, layout, docstrings and spelling do not count.

    `1e-3` and `0.001` are the same, 1 and 1.0 are not. Of text that is no Python only blanks at line ends do not count.
    """
    try:
        text = _canonical(_parsed(source)[0])
    except _Unparsable:
        text = "\n".join(line.rstrip() for line in source.split("\n"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Unparsable(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _parsed(source: str) -> tuple[ast.Module, list[ast.Constant]]:
    """The tree, of limited depth, and its literals.

    Python's own parser comes first: unlike libcst's, it survives any nesting.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is the author's business
            tree = ast.parse(source)
            literals = _literals(tree)
            compile(tree, "train.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _Unparsable(error.msg, error.lineno or 1) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Unparsable(str(error) or "too deep nesting", 1) from None
    return tree, literals


def _literals(tree: ast.AST) -> list[ast.Constant]:
    """All of them, by depth; which is limited."""
    level, depth, found = [tree], 0, []
    while level:
        depth += 1
        if depth > rules.MAX_DEPTH:
            raise _Unparsable(f"nesting deeper than {rules.MAX_DEPTH} levels", getattr(level[0], "lineno", 1))
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        found += [node for node in level if isinstance(node, ast.Constant)]
    return found


def _canonical(node: object) -> str:
    """A text of an ast that does not change between Python versions: empty and layout fields are left out."""
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name in node._fields:
        value = getattr(node, name, None)
        if name == "body" and isinstance(value, list):
            value = _without_docstring(node, value)
        if name not in {"ctx", "kind", "type_comment", "type_ignores"} and value is not None and value != []:
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return body[1:]
    return body


@lru_cache(maxsize=16)  # a session checks many candidates against one parent
def _inspect(source: str, extra: frozenset[str]) -> tuple[Breach, ...]:
    found = list(_of_text(source))
    try:
        tree, literals = _parsed(source)
        found += [*breaches(_facts(source, tree), extra), *_payload(literals)]
    except _Unparsable as error:
        found.append(Breach("syntax", error.line, str(error)))
    distinct = {(breach.rule, breach.line): breach for breach in found}
    return tuple(distinct.values())


def _facts(source: str, tree: ast.Module) -> Facts:
    """The facts of a whole source; `tree` is what Python's own parser made of it. Raises _Unparsable."""
    whole = Facts()
    for first, text in _statements(source, tree):
        whole.add(_facts_of_statement(text, first), first - 1)
    return whole


def _statements(source: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """First line (from 1) and text of each top-level statement, with what stands above; those of one line together."""
    lines = _LINE.findall(source)
    done = 0
    for index, statement in enumerate(tree.body, 1):
        end = statement.end_lineno or statement.lineno
        if index == len(tree.body) or tree.body[index].lineno > end:
            yield done + 1, "".join(lines[done:end])
            done = end


def _facts_of_statement(text: str, first: int) -> Facts:
    try:
        return _remembered(text)
    except cst.ParserSyntaxError as error:
        raise _Unparsable(error.message, first - 1 + error.raw_line) from None


@lru_cache(maxsize=_REMEMBERED)
def _remembered(text: str) -> Facts:
    facts = Facts()
    facts.gather(cst.parse_module(text))
    return facts


def _of_text(source: str) -> Iterator[Breach]:
    """Breaches that can be seen before parsing."""
    lines, size = source.count("\n") + 1, len(source.encode("utf-8", "surrogatepass"))
    if lines > rules.MAX_LINES or size > rules.MAX_BYTES:
        yield Breach("size", min(lines, rules.MAX_LINES), f"over {rules.MAX_LINES} lines or {rules.MAX_BYTES} bytes")
    for odd in _ODD.finditer(source):
        line = source.count("\n", 0, odd.start()) + 1
        yield Breach("encoding", line, f"U+{ord(odd.group()):04X} in {_line(source, odd.start())!a}")
    for number, text in enumerate(source.split("\n", 2)[:2], 1):
        coding = _CODING.match(text)
        if coding and coding.group(1).lower().replace("_", "-") not in {"utf-8", "utf8"}:
            yield Breach("encoding", number, text.strip())


def _payload(literals: list[ast.Constant]) -> Iterator[Breach]:
    """Texts and numbers that are too long, or the place where all of them together become too many."""
    text = numbers = 0
    for node in literals:
        value = node.value
        size = len(value) if isinstance(value, str | bytes) else 0
        bits = value.bit_length() if isinstance(value, int) else 0
        before = text <= rules.MAX_TEXT and numbers <= rules.MAX_NUMBERS
        text, numbers = text + size, numbers + isinstance(value, int | float | complex)
        over = before and (text > rules.MAX_TEXT or numbers > rules.MAX_NUMBERS)
        if size > rules.MAX_STRING or bits > rules.MAX_BITS or over:
            yield Breach("payload", node.lineno, f"{text} characters of text and {numbers} numbers so far")


def _line(source: str, offset: int) -> str:
    end = source.find("\n", offset)
    return source[source.rfind("\n", 0, offset) + 1 : len(source) if end < 0 else end].strip()
