"""The policy where it stands: the literal bound to MATRIX_POLICY in train.py, read and replaced by libcst. Pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import libcst as cst
import libcst.matchers as m

from agent.proposers.evolve.genome import Policy
from agent.values import Edit

NAME = "MATRIX_POLICY"
_BINDING = m.Assign(targets=[m.AssignTarget(target=m.Name(NAME))])


def read(source: str) -> Policy:
    """The policy that `source` trains with. ValueError where there is none to be read, or more than one."""
    node = _binding(source)[1].value
    try:
        fields = ast.literal_eval(cst.Module([]).code_for_node(node))
    except (ValueError, TypeError):
        raise ValueError(f"expected a plain literal behind {NAME} =, found something that has to be computed") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a dict of MatrixPolicy's fields behind {NAME} =, found {fields!r}")
    return Policy.of(fields)


def rebound(source: str, policy: Policy) -> str:
    """`source` with this policy; all else stays as it is, to the letter. ValueError as from `read`."""
    module, binding = _binding(source)
    changed = module.deep_replace(binding, binding.with_changes(value=cst.parse_expression(render(policy.fields))))
    assert isinstance(changed, cst.Module)
    return changed.code


def edits(path: str, source: str, policy: Policy) -> tuple[Edit, ...]:
    """What gives `source`, the file `path`, this policy: one edit, none where it has it already."""
    if read(source) == policy:
        return ()
    old = cst.Module([]).code_for_node(_binding(source)[1])
    new = f"{NAME} = {render(policy.fields)}"
    return (Edit(path, old, new) if source.count(old) == 1 else Edit(path, None, rebound(source, policy)),)


@lru_cache(maxsize=4)
def without(source: str) -> str:
    """`source` less its policy: equal for two sources that differ in nothing else."""
    return rebound(source, Policy())


def render(value: Any) -> str:
    """A literal in the style of train.py."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{render(name)}: {render(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(render, value)) + ")"
    return json.dumps(value) if isinstance(value, str) else repr(value)


@lru_cache(maxsize=4)  # parsing a thousand lines takes a second
def _binding(source: str) -> tuple[cst.Module, cst.Assign]:
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise ValueError(f"expected Python, found {error.message}") from None
    found = m.findall(module, _BINDING)
    if len(found) != 1:
        raise ValueError(f"expected one line {NAME} = {{…}} among its constants, found {len(found) or 'none'}")
    binding = found[0]
    assert isinstance(binding, cst.Assign)
    return module, binding
