"""Scores on several seeds, read back from the folders of sessions: what is known of noise, and what stands ready."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.errors import StateError
from agent.folder import EXECUTION, METRICS, SPEC, SessionFolder, sessions
from agent.noise import Noise, measured, prior
from sandbox.process import Ending

ALIKE = ("data_id", "budget", "hardware", "torch")  # only where these agree do numbers compare


def scores(runs: Sequence[Path]) -> dict[int, float | None]:
    """Seed → score of the runs that have ended, None where one ended without a number."""
    return {json.loads((run / SPEC).read_text())["seed"]: _score(run / METRICS) for run in runs if ended(run)}


def ended(run: Path) -> bool:
    """By itself: neither cut off nor called off."""
    execution = run / EXECUTION
    return execution.is_file() and json.loads(execution.read_text()).get("ending") != Ending.CANCELLED


def noise_of(root: Path, facts: Mapping[str, Any], device: str, score: float) -> Noise:
    """From every re-run under `root` of a session that is like the one with these `facts`, and the prior of `device`.

    score: of a baseline or incumbent, for the prior is a share of it.
    """
    found = [result for folder in alike(root, facts) for result in _results(folder)]
    return measured(prior(device, score), [group for group, _ in found], [pair for _, pair in found])


def _results(folder: SessionFolder) -> list[tuple[list[float], list[float]]]:
    """Scores on several seeds, of incumbents and of the session's first code; and differences to the incumbent's.

    Only of the differences every candidate's count. Its scores themselves do not: one that falls apart on some seed
    says nothing about others. [] for a folder that cannot be read.
    """
    try:
        trials = [trial for _, trial in folder.trials()]
        defences = [_numbers(scores(trial.defence())) for trial in trials]
        theirs = {seed: value for defence in defences for seed, value in defence.items()}  # nobody shares a seed
        fresh = [_numbers(scores(trial.runs()[1:])) for trial in trials]
        groups = [_numbers(scores(folder.noise())), *defences]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    pairs = [[value - theirs[seed] for seed, value in one.items() if seed in theirs] for one in fresh]
    return [(list(group.values()), []) for group in groups] + [([], pair) for pair in pairs]


def alike(root: Path, facts: Mapping[str, Any]) -> Iterator[SessionFolder]:
    """Sessions whose numbers compare with those of the one with these `facts`, itself included."""
    for tag in sessions(root):
        folder = SessionFolder(root, tag)
        try:
            found = folder.session() or {}
        except StateError:  # somebody else's, and no reason to stop this one
            continue
        if _key(found) == _key(facts):
            yield folder


def _key(facts: Mapping[str, Any]) -> list[Any]:
    """The task as JSON gives it back, in which no list is a tuple."""
    return [json.loads(json.dumps(facts.get(name))) for name in (*ALIKE, "task")]


def _score(metrics: Path) -> float | None:
    return float(json.loads(metrics.read_text())["val_bpb"]) if metrics.is_file() else None


def _numbers(found: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in found.items() if value is not None}
