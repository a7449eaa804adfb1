"""What a source says, gathered from its libcst tree: imports, names, calls, assignments and strings, with their lines.

libcst's metadata providers cost several times the parse, so lines are counted on the way: nodes are met in the order of
the text, newlines included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import libcst as cst

from agent.names import Names, dotted, is_guard


class Place(NamedTuple):
    """Something at a line (from 1): `name` is its dotted name as written, "" for the part that is no plain name.

    top: it runs when the file is imported. args: of a call. value: of a store what is stored, where that is written
    beside it; of an import the local name; of a read the node itself where it only makes an alias, `a = b`.
    """

    name: str
    line: int
    node: cst.CSTNode
    top: bool = False
    args: Sequence[cst.Arg] = ()
    value: cst.BaseExpression | None = None


class _Order(cst.CSTVisitor):
    """Notes in which order libcst visits the attributes of `root`."""

    def __init__(self, root: cst.CSTNode) -> None:
        super().__init__()
        self.root = root
        self.attributes: list[str] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        return node is self.root

    def on_visit_attribute(self, node: cst.CSTNode, attribute: str) -> None:
        if node is self.root:
            self.attributes.append(attribute)


_ORDER: dict[type[cst.CSTNode], list[str]] = {}


def _children(node: cst.CSTNode) -> list[str]:
    """The attributes of a node that hold its children, in the order of the text.

    Asked of libcst once for each class: its own visitors build every node anew, which takes as long as the parse.
    """
    kind = type(node)
    if kind not in _ORDER:
        order = _Order(node)
        node.visit(order)
        _ORDER[kind] = order.attributes
    return _ORDER[kind]


@dataclass
class Facts:
    """Lines count from the first line of what was gathered."""

    body: list[Place] = field(default_factory=list)  # the top-level statements
    imports: list[Place] = field(default_factory=list)
    reads: list[Place] = field(default_factory=list)
    calls: list[Place] = field(default_factory=list)
    stores: list[Place] = field(default_factory=list)
    strings: list[Place] = field(default_factory=list)
    names: Names = field(default_factory=Names)
    _line: int = 1
    _depth: int = 0  # of functions and the main guard: 0 runs on import
    _aliased: set[int] = field(default_factory=set)  # the b of `a = b`
    _skip: set[int] = field(default_factory=set)  # names and strings that were seen as a part of something else

    def add(self, other: Facts, offset: int) -> None:
        """The facts of a statement that stands `offset` lines below the start; `other` stays as it is."""
        for name in ("body", "imports", "reads", "calls", "stores", "strings"):
            getattr(self, name).extend([place._replace(line=place.line + offset) for place in getattr(other, name)])
        self.names.add(other.names)

    def gather(self, node: cst.CSTNode) -> None:
        """Add what `node`, a module at first, and all below it say."""
        depth = self._depth
        handler = _ENTER.get(type(node))
        if handler is not None:
            handler(self, node)
        for attribute in _children(node):
            value = getattr(node, attribute)
            kind = type(value)
            if kind is tuple or kind is list:
                for child in value:
                    self.gather(child)
            elif value is not None and kind is not cst.MaybeSentinel:
                self.gather(value)
        self._depth = depth

    def _place(self, name: str, node: cst.CSTNode, args: Sequence[cst.Arg] = ()) -> Place:
        return Place(name, self._line, node, self._depth == 0, args)

    def _newline(self, _: cst.CSTNode) -> None:
        self._line += 1

    def _blank(self, node: cst.SimpleWhitespace) -> None:
        if "\n" in node.value:  # a line continued by a backslash
            self._line += node.value.count("\n")

    def _string(self, node: cst.SimpleString | cst.FormattedStringText) -> None:
        if id(node) not in self._skip:
            self.strings.append(self._place(node.value, node))
        self._line += node.value.count("\n")

    def _statement(self, node: cst.Expr) -> None:
        if isinstance(node.value, cst.SimpleString):  # a docstring, or a comment in the shape of one
            self._skip.add(id(node.value))

    def _module(self, node: cst.Module) -> None:
        self._skip.update(id(statement) for statement in node.body)

    def _compound(self, node: cst.BaseCompoundStatement | cst.SimpleStatementLine) -> None:
        if id(node) in self._skip:
            self.body.append(Place("", self._line + len(node.leading_lines), node, top=True))
        if is_guard(node):
            self._depth += 1

    def _import(self, node: cst.Import) -> None:
        for alias in node.names:
            name = dotted(alias.name)
            local = alias.asname.name if alias.asname else alias.name
            self.imports.append(self._place(name, node)._replace(value=local))
            self.names.bind_module(name, dotted(alias.asname.name) if alias.asname else None)
            self._hide(alias)

    def _import_from(self, node: cst.ImportFrom) -> None:
        base = "." * len(node.relative) + (dotted(node.module) if node.module else "")
        for alias in () if isinstance(node.names, cst.ImportStar) else node.names:
            name = f"{base}.{dotted(alias.name)}"
            local = alias.asname.name if alias.asname else alias.name
            self.imports.append(self._place(name, node)._replace(value=local))
            self.names.bind_part(name, dotted(local))
            self._hide(alias)
        if isinstance(node.names, cst.ImportStar):
            self.imports.append(self._place(f"{base}.*", node))
        self._skip_names(node.module)

    def _hide(self, alias: cst.ImportAlias) -> None:
        self._skip_names(alias.name)
        if alias.asname:
            self._skip_names(alias.asname.name)

    def _skip_names(self, node: cst.CSTNode | None) -> None:
        while isinstance(node, cst.Attribute):
            self._skip |= {id(node), id(node.attr)}
            node = node.value
        if isinstance(node, cst.Name):
            self._skip.add(id(node))

    def _attribute(self, node: cst.Attribute) -> None:
        if id(node) in self._skip:
            return
        self.reads.append(self._place(dotted(node), node))
        self._skip_names(node)

    def _name(self, node: cst.Name) -> None:
        if id(node) not in self._skip:
            place = self._place(dotted(node), node)
            self.reads.append(place._replace(value=node) if id(node) in self._aliased else place)

    def _call(self, node: cst.Call) -> None:
        name = dotted(node.func)
        self.calls.append(self._place(name, node, node.args))
        literal = dotted(node)
        if literal:  # getattr(x, "y") is x.y
            self.reads.append(self._place(literal, node))
            self._skip_names(node.args[0].value)

        elif name == "hasattr" and node.args:  # asking a module what it has is no passing on
            self._skip_names(node.args[0].value)

    def _argument(self, node: cst.Arg) -> None:
        self._skip_names(node.keyword)

    def _store(self, target: cst.BaseExpression, value: cst.BaseExpression | None = None) -> None:
        if isinstance(target, (cst.Tuple, cst.List)):
            values = value.elements if isinstance(value, (cst.Tuple, cst.List)) else ()
            for index, element in enumerate(target.elements):
                self._store(element.value, values[index].value if len(values) == len(target.elements) else None)
            return
        base = target
        while isinstance(base, cst.Subscript):
            base = base.value
        name = dotted(base)
        self.stores.append(self._place(name, target)._replace(value=value))
        origin = dotted(value) if isinstance(value, (cst.Name, cst.Attribute, cst.Call)) else ""
        if isinstance(target, cst.Name):
            self._skip.add(id(target))
            if origin and not origin.startswith("."):
                self.names.bind_alias(name, origin)
                self._aliased.add(id(value))

    def _assign(self, node: cst.Assign) -> None:
        for target in node.targets:
            self._store(target.target, node.value)

    def _assign_one(self, node: cst.AnnAssign | cst.NamedExpr) -> None:
        self._store(node.target, node.value)

    def _target(self, node: cst.AugAssign | cst.For | cst.CompFor) -> None:
        if isinstance(node, cst.For):
            self._compound(node)
        self._store(node.target)

    def _as_name(self, node: cst.AsName) -> None:
        if id(node.name) not in self._skip:  # `with … as x`, `except … as x`
            self._store(node.name)

    def _delete(self, node: cst.Del) -> None:
        self._store(node.target)

    def _parameter(self, node: cst.Param) -> None:
        self._store(node.name)

    def _define(self, node: cst.FunctionDef | cst.ClassDef) -> None:
        self._compound(node)
        self.stores.append(Place(node.name.value, self._line + len(node.leading_lines), node, self._depth == 0))
        self._skip.add(id(node.name))
        if isinstance(node, cst.FunctionDef):
            self._depth += 1

    def _lambda(self, _: cst.Lambda) -> None:
        self._depth += 1


_ENTER: dict[type[cst.CSTNode], Callable[..., None]] = {
    cst.Module: Facts._module,
    cst.Newline: Facts._newline,
    cst.SimpleWhitespace: Facts._blank,
    cst.SimpleString: Facts._string,
    cst.FormattedStringText: Facts._string,
    cst.Expr: Facts._statement,
    cst.Import: Facts._import,
    cst.ImportFrom: Facts._import_from,
    cst.Attribute: Facts._attribute,
    cst.Name: Facts._name,
    cst.Call: Facts._call,
    cst.Arg: Facts._argument,
    cst.Assign: Facts._assign,
    cst.AnnAssign: Facts._assign_one,
    cst.NamedExpr: Facts._assign_one,
    cst.AugAssign: Facts._target,
    cst.For: Facts._target,
    cst.CompFor: Facts._target,
    cst.AsName: Facts._as_name,
    cst.Del: Facts._delete,
    cst.Param: Facts._parameter,
    cst.FunctionDef: Facts._define,
    cst.ClassDef: Facts._define,
    cst.Lambda: Facts._lambda,
    **dict.fromkeys((cst.If, cst.While, cst.With, cst.Try, cst.TryStar, cst.Match), Facts._compound),
    cst.SimpleStatementLine: Facts._compound,
}
