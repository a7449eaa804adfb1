"""The only maker of a Candidate: a proposal that applies, keeps the contract, and was not tried before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from agent import patch, preflight
from agent.config import Task
from agent.errors import DuplicateError, PreflightError
from agent.turns import Turn, told, turned
from agent.values import WRITERS, Candidate, Proposal

# (digest, the proposal's own budget, its own seed)
Repeat: TypeAlias = tuple[str, str | None, int | None]


@dataclass(frozen=True)
class Tried:
    """What trials so far have come to, as text, by `repeat_of`. turns: constants turned one way, from commit.

    device: whose constants count, cpu, cuda or mps.
    """

    repeats: Mapping[Repeat, str] = field(default_factory=dict)
    turns: Mapping[tuple[str, Turn], str] = field(default_factory=dict)
    device: str = "cpu"


def build(proposal: Proposal, sources: Mapping[str, str], parent: str, task: Task, tried: Tried) -> Candidate:
    """Apply `proposal` to the incumbent's `sources` (at commit `parent`).

    Raise PatchError, PreflightError, DuplicateError, each
    with a text that a model can act on.
    """
    same = not proposal.edits and (proposal.budget, proposal.seed) != (None, None)  # the incumbent, measured elsewhere
    new = dict(sources) if same else patch.apply(sources, proposal.edits, task.targets)
    findings = [
        f"{path}:{finding.line} [{finding.rule}] {finding.message}"
        for path in task.targets
        for finding in preflight.check(new[path], sources[path], task.profile)
    ]
    if findings:
        raise PreflightError("; ".join(findings))
    digest = digest_of(new)
    before = tried.repeats.get(repeat_of(digest, proposal))
    if before is not None:
        raise DuplicateError(f"the same code was tried before: {before}; propose something else")
    if proposal.proposer in WRITERS and (turn := turned(sources, new, tried.device)) is not None:
        before = tried.turns.get((parent, turn))
        if before is not None:
            raise DuplicateError(f"{told(turn)} was tried on this very code: {before}; propose something else")
    return Candidate(proposal, new, parent, digest, patch.diff(sources, new))


def repeat_of(digest: str, proposal: Proposal) -> Repeat:
    """What makes a trial the same as another: the code, and where it runs if that is not where all others do."""
    return digest, proposal.budget, proposal.seed


def digest_of(sources: Mapping[str, str]) -> str:
    """One hash of all target files, layout and comments left out."""
    whole = "\n".join(f"{path} {preflight.digest(text)}" for path, text in sorted(sources.items()))
    return hashlib.sha256(whole.encode()).hexdigest()
