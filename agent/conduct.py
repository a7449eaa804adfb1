"""The rules over a parsed source: each function looks for breaches of a few rules in the tree and its facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst

from agent import rules
from agent.facts import Facts, Place
from agent.names import dotted, is_guard

_BLOCK = re.compile(r"^---(?!-)|^\s*val_bpb\s*[:=]", re.MULTILINE)


@dataclass(frozen=True)
class Breach:
    """A rule broken at a line; `code` is what breaks it, with single blanks, and tells one breach from another."""

    rule: str
    line: int
    code: str


def breaches(facts: Facts, extra: frozenset[str]) -> Iterator[Breach]:
    """All breaches of a source. extra: top-level modules that may be imported besides the usual ones."""
    yield from _contract(facts)
    yield from _imports(facts, extra)
    yield from _on_import(facts)
    yield from _prepare(facts)
    yield from _seeds(facts)
    yield from _names(facts)
    yield from _assignments(facts)
    yield from _strings(facts)


def _breach(rule: str, place: Place) -> Breach:
    return Breach(rule, place.line, code_of(place.node))


def code_of(node: cst.CSTNode) -> str:
    return " ".join(cst.Module([]).code_for_node(node).split())


def _contract(facts: Facts) -> Iterator[Breach]:
    last = max((place.line for place in facts.body), default=1)
    for name in rules.CONTRACT:
        yield from _contract_name(facts, name)
    for place in facts.stores:
        if place.top and place.name in rules.CONTRACT and place.value is not None:
            yield _breach("contract-name", place)
    for name, rule in rules.REQUIRED_CALLS.items():
        if not any(f"prepare.{name}" in facts.names.resolve(call.name) for call in facts.calls):
            yield Breach(rule, last, f"no prepare.{name}()")
    guards = [place for place in facts.body if is_guard(place.node)]
    if not any(re.search(r"(?<![\w.])main\(\)", code_of(guard.node)) for guard in guards):
        yield Breach("main-guard", guards[0].line if guards else last, 'no `if __name__ == "__main__": main()`')


def _contract_name(facts: Facts, name: str) -> Iterator[Breach]:
    kind = cst.ClassDef if name == "GPTConfig" else cst.FunctionDef
    found = [place for place in facts.body if isinstance(place.node, kind) and place.node.name.value == name]
    if len(found) != 1:
        yield Breach("contract-name", found[-1].line if found else 1, f"{len(found)} definitions of {name}")
    for line, node in [(place.line, place.node) for place in found[-1:]]:
        if isinstance(node, cst.FunctionDef) and not _callable_as_agreed(node):
            header = node.with_changes(body=cst.SimpleStatementSuite([]), leading_lines=(), decorators=())
            yield Breach("contract-signature", line, code_of(header))


def _callable_as_agreed(node: cst.FunctionDef) -> bool:
    params = node.params
    positional = [*params.posonly_params, *params.params]
    required = [param.name.value for param in [*positional, *params.kwonly_params] if param.default is None]
    wanted = ["config"] if node.name.value == "build_model" else []
    return (
        node.asynchronous is None and required == wanted and [p.name.value for p in positional][: len(wanted)] == wanted
    )


def _imports(facts: Facts, extra: frozenset[str]) -> Iterator[Breach]:
    for place in facts.imports:
        rule = rules.import_rule(place.name.removesuffix(".*"), extra)
        if not rule and place.name.endswith(".*"):
            rule = "import"  # a star hides which names come in
        if rule:
            yield Breach(rule, place.line, f"import {place.name}")


def _on_import(facts: Facts) -> Iterator[Breach]:
    for place in facts.body:
        if not is_guard(place.node) and not _only_defines(place.node):
            yield _breach("import-effect", place)
    calls = {*rules.CONTRACT[1:], *(f"prepare.{name}" for name in rules.REQUIRED_CALLS)}
    for place in facts.calls:
        if place.top and not calls.isdisjoint({place.name, *facts.names.resolve(place.name)}):
            yield _breach("import-effect", place)


def _only_defines(statement: cst.CSTNode) -> bool:
    """Whether a top-level statement only imports, assigns or defines, `if` and `try` around such included."""
    if isinstance(statement, cst.SimpleStatementLine):
        return all(
            isinstance(
                small, (cst.Import, cst.ImportFrom, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Pass, cst.Assert)
            )
            or (isinstance(small, cst.Expr) and isinstance(small.value, (cst.SimpleString, cst.ConcatenatedString)))
            for small in statement.body
        )
    if isinstance(statement, (cst.If, cst.Else, cst.Try, cst.ExceptHandler, cst.Finally)):
        parts: list[cst.CSTNode | None] = [*statement.body.body]
        if isinstance(statement, (cst.If, cst.Try)):
            parts.append(statement.orelse)
        if isinstance(statement, cst.Try):
            parts += [*statement.handlers, statement.finalbody]
        return all(part is None or _only_defines(part) for part in parts)
    return isinstance(statement, (cst.FunctionDef, cst.ClassDef))


def _prepare(facts: Facts) -> Iterator[Breach]:
    feeds = {"feed", *(store.name for store in facts.stores if "prepare.open_feed" in _called(facts, store))}
    for place in facts.imports:
        if _is_private(place.name):
            yield _breach("prepare-private", place)
        if dotted(place.value) == "prepare" != place.name:
            yield _breach("prepare-rebound", place)
    for place in facts.reads:
        head, _, rest = place.name.partition(".")
        part = rest.split(".")[0]
        hidden = head in feeds and (part in rules.FEED_HIDDEN or re.search(r"(^|\.)_(?!_)", rest))
        if hidden or any(_is_private(full) for full in facts.names.imported(place.name)):
            yield _breach("prepare-private", place)
        if not rest and place.value is None and facts.names.is_module(head) and "prepare" in facts.names.resolve(head):
            yield _breach("prepare-rebound", place)
    for place in facts.stores:
        head, dot, _ = place.name.partition(".")
        fixed = any(full.split(".")[0] == "prepare" for full in facts.names.imported(place.name))
        if (dot and (fixed or head in feeds)) or (not dot and facts.names.is_fixed(head, "prepare")):
            yield _breach("prepare-rebound", place)


def _is_private(name: str) -> bool:
    """Whether a full name, as `prepare.log`, is no public part of prepare; other modules' names are none of its."""
    head, _, rest = name.partition(".")
    part = rest.split(".")[0]
    hidden = part in rules.PREPARE_HIDDEN or not (part.isupper() or part in rules.PREPARE_PUBLIC)
    return head == "prepare" and bool(part) and hidden


def _called(facts: Facts, store: Place) -> set[str]:
    return facts.names.resolve(dotted(store.value.func)) if isinstance(store.value, cst.Call) else set()


def _seeds(facts: Facts) -> Iterator[Breach]:
    for call in facts.calls:
        known = facts.names.imported(call.name)
        seeder = not rules.SEEDERS.isdisjoint(known) or call.name.rpartition(".")[2] in rules.SEED_METHODS
        if seeder and ("." in call.name or known) and not (len(call.args) == 1 and _is_seed(facts, call.args[0].value)):
            yield _breach("seed", call)
    for place in facts.stores:
        if place.name == "SEED" and not (place.value is not None and _is_seed(facts, place.value)):
            yield _breach("seed-rebound", place)


def _is_seed(facts: Facts, node: cst.CSTNode) -> bool:
    """Whether it is `SEED` or `prepare.SEED`; any other name might hold something else by then."""
    name = dotted(node)
    return name == "SEED" or ("." in name and "prepare.SEED" in facts.names.resolve(name))


def _names(facts: Facts) -> Iterator[Breach]:
    for place in facts.reads:
        rule = _rule_of_name(facts, place.name)
        if rule:
            yield _breach(rule, place)
        elif (
            place.value is None
            and facts.names.is_module(place.name)
            and "prepare" not in facts.names.resolve(place.name)
        ):
            yield _breach("introspection", place)  # a module passed on, where its attributes can no longer be followed
    for call in facts.calls:
        if call.name in {"getattr", "setattr", "delattr"} and len(call.args) > 1:
            named = isinstance(call.args[1].value, cst.SimpleString)
            if not named and not (call.name == "setattr" and dotted(call.args[0].value) == "self"):
                yield _breach("introspection", call)


def _rule_of_name(facts: Facts, name: str) -> str:
    head, *rest = name.split(".")
    for full in facts.names.imported(name):
        rule = rules.rule_of(full) if "." in full and not full.startswith("prepare.") else ""
        if rule:
            return rule
    if head in rules.BUILTINS and not facts.names.imported(head):
        return rules.BUILTINS[head]
    for part in rest:
        if part in rules.ATTRIBUTES:
            return rules.ATTRIBUTES[part]
        if part.startswith("__") and part.endswith("__") and part not in rules.PLAIN_DUNDERS:
            return "introspection"
    return ""


def _assignments(facts: Facts) -> Iterator[Breach]:
    for place in facts.stores:
        for full in facts.names.imported(place.name) if "." in place.name else ():
            if not full.startswith(("prepare.", *rules.SETTINGS)) and not rules.rule_of(full):
                yield _breach("patching", place)
    for call in facts.calls:
        if call.name in {"setattr", "delattr"} and call.args and facts.names.imported(dotted(call.args[0].value)):
            yield _breach("patching", call)


def _strings(facts: Facts) -> Iterator[Breach]:
    for place in facts.strings:
        if isinstance(place.node, cst.SimpleString):
            value = place.node.evaluated_value
            text = value.decode("latin-1") if isinstance(value, bytes) else value
        else:
            text = place.name.replace("\\n", "\n")
        if _BLOCK.search(text):
            yield _breach("summary", place)
