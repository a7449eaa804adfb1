"""What a trial is up against: the incumbent's numbers, and which of the two is simpler."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from agent.folder import SessionFolder
from agent.judge import RERUNS, SPARE, Standing
from agent.reruns import noise_of, scores
from agent.values import Record


def standing_of(
    folder: SessionFolder,
    facts: Mapping[str, Any],
    now: Record | None,
    device: str,
    ours: Mapping[str, str],
    theirs: Mapping[str, str],
) -> Standing:
    """facts: of the session. now: the incumbent's row. ours, theirs: target files of candidate and incumbent."""
    score = 1.0 if now is None or now.val_bpb is None else now.val_bpb
    noise = noise_of(folder.root, facts, device, score)
    if now is None:
        return Standing(None, noise)
    trial = folder.trial(now.trial or 0)
    first = next(iter(scores(trial.runs()[:1]).values()), None)
    finding = trial.finding()
    conceded = finding.conceded if finding else 0.0
    simpler = sum(map(nodes, ours.values())) < sum(map(nodes, theirs.values()))
    seeds = trial.seeds(RERUNS + SPARE)
    return Standing(now, noise, seeds, first, scores(trial.defence()), simpler, conceded)


@lru_cache(maxsize=64)
def nodes(source: str) -> int:
    """Syntax nodes of a Python source; layout, comments and docstrings are none. 0 where it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return 0
    words = sum(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in ast.walk(tree))
    return sum(1 for _ in ast.walk(tree)) - 2 * words
