"""What names mean: dotted names of a libcst tree, and what a file's imports and plain aliases make of them.

There are no scopes: where one name means several things in a file, all of them count.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import libcst as cst

_ALIAS_DEPTH = 8
_MEANINGS = 64  # of one name; where aliases go in circles, this many are enough


class Names:
    """Names of one file, as written, and the full names they stand for."""

    def __init__(self) -> None:
        self._origins: dict[str, set[str]] = {}
        self._bound: dict[str, str] = {}  # by an import: local name -> full name
        self._modules: set[str] = set()
        self._heads: set[str] = set()  # top-level modules that are imported
        self._resolved: dict[str, set[str]] = {}  # what `resolve` found; names come up again and again

    def add(self, other: Names) -> None:
        """What another part of the same file says; `other` stays as it is."""
        self._resolved.clear()
        for name, origins in other._origins.items():
            self._origins.setdefault(name, set()).update(origins)
        self._bound |= other._bound
        self._modules |= other._modules
        self._heads |= other._heads

    def bind_module(self, name: str, local: str | None) -> None:
        """`import name` or `import name as local`."""
        head = name.partition(".")[0]
        short, full = (local, name) if local else (head, head)
        self._heads.add(head)
        self._modules |= {short, full}
        self._bound[short] = full
        self._origins.setdefault(short, set()).add(full)

    def bind_part(self, name: str, local: str) -> None:
        """`from module import part as local`, where name is `module.part`."""
        self._heads.add(name.partition(".")[0])
        self._bound[local] = name
        self._origins.setdefault(local, set()).add(name)

    def bind_alias(self, local: str, name: str) -> None:
        """`local = name`."""
        if local != name.partition(".")[0]:  # `x = x.T` says nothing new about x
            self._origins.setdefault(local, set()).add(name)

    def resolve(self, name: str) -> set[str]:
        """All that a dotted name may stand for, imports and aliases followed: `o.system` -> {"os.system"}."""
        if name not in self._resolved:
            self._resolved[name] = self._resolve(name)
        return self._resolved[name]

    def _resolve(self, name: str) -> set[str]:
        found: set[str] = set()
        front = {name}
        for _ in range(_ALIAS_DEPTH):
            front = {full for short in front for full in self._followed(short)} - found
            found |= front
            if not front or len(found) > _MEANINGS:
                break
        return found

    def is_fixed(self, name: str, module: str) -> bool:
        """Whether a plain name is bound by an import of `module` or of a part of it, or is the module's own name."""
        return name == module or self._bound.get(name, "").partition(".")[0] == module

    def is_module(self, name: str) -> bool:
        """Whether a name, as written, was bound by an import of a module or is an alias of such a name."""
        return name in self._modules or not self._modules.isdisjoint(self.resolve(name))

    def imported(self, name: str) -> set[str]:
        """All that it may stand for as a part of an imported module: `F.relu` -> {"torch.nn.functional.relu"}."""
        return {full for full in self.resolve(name) if full.partition(".")[0] in self._heads}

    def _followed(self, name: str) -> Iterator[str]:
        head, dot, rest = name.partition(".")
        for origin in self._origins.get(head, ()):
            yield origin + dot + rest


def dotted(node: cst.CSTNode | None) -> str:
    """`a.b.c` of names and attributes, `getattr(a, "b")` included; "" or a leading dot where the base is anything else.

    Names are normalised as Python does it (NFKC), so look-alike letters do not hide one.
    """
    parts: list[str] = []
    while True:
        if isinstance(node, cst.Attribute):
            parts.append(node.attr.value)
            node = node.value
        elif isinstance(node, cst.Call) and (name := _literal_getattr(node)):
            parts.append(name)
            node = node.args[0].value
        else:
            break
    if isinstance(node, cst.Name):
        parts.append(node.value)
    elif parts:
        parts.append("")
    return unicodedata.normalize("NFKC", ".".join(reversed(parts)))


def _literal_getattr(call: cst.Call) -> str:
    """The attribute a call of getattr with a literal name asks for; "" for all other calls."""
    if not isinstance(call.func, cst.Name) or call.func.value != "getattr" or len(call.args) < 2:
        return ""
    name = call.args[1].value
    value = name.evaluated_value if isinstance(name, cst.SimpleString) else ""
    return value if isinstance(value, str) and value.isidentifier() else ""


def is_guard(node: cst.CSTNode) -> bool:
    """Whether it is `if __name__ == "__main__":`."""
    if not isinstance(node, cst.If) or not isinstance(node.test, cst.Comparison) or len(node.test.comparisons) != 1:
        return False
    comparison = node.test.comparisons[0]
    sides = {type(side): side for side in (node.test.left, comparison.comparator)}
    name, text = sides.get(cst.Name), sides.get(cst.SimpleString)
    return (
        isinstance(comparison.operator, cst.Equal)
        and isinstance(name, cst.Name)
        and name.value == "__name__"
        and isinstance(text, cst.SimpleString)
        and text.evaluated_value == "__main__"
    )
