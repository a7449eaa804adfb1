"""The only maker of a Candidate: a proposal that applies, keeps the contract, and was not tried before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from agent import patch, preflight
from agent.config import Task
from agent.errors import DuplicateError, PreflightError
from agent.values import Candidate, Proposal


def build(
    proposal: Proposal, sources: Mapping[str, str], parent: str, task: Task, tried: Mapping[str, str]
) -> Candidate:
    """Apply `proposal` to the incumbent's `sources` (at commit `parent`).

    tried: digest → how that trial ended, for every trial so far. Raise PatchError, PreflightError, DuplicateError, each
    with a text that a model can act on.
    """
    new = patch.apply(sources, proposal.edits, task.targets)
    findings = [
        f"{path}:{finding.line} [{finding.rule}] {finding.message}"
        for path in task.targets
        for finding in preflight.check(new[path], sources[path], task.profile)
    ]
    if findings:
        raise PreflightError("; ".join(findings))
    digest = digest_of(new)
    if digest in tried:
        raise DuplicateError(f"the same code was tried before: {tried[digest]}; propose something else")
    return Candidate(proposal, new, parent, digest, patch.diff(sources, new))


def digest_of(sources: Mapping[str, str]) -> str:
    """One hash of all target files, layout and comments left out."""
    whole = "\n".join(f"{path} {preflight.digest(text)}" for path, text in sorted(sources.items()))
    return hashlib.sha256(whole.encode()).hexdigest()
