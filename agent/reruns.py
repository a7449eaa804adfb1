"""Scores on several seeds, read back from the folders of sessions: what is known of noise, and what stands ready."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.folder import EXECUTION, METRICS, SPEC, SessionFolder, sessions
from agent.noise import Noise, measured, prior

ALIKE = ("data_id", "budget", "hardware", "torch")  # only where these agree do numbers compare


def scores(runs: Sequence[Path]) -> dict[int, float | None]:
    """Seed → score of the runs that have ended, None where one ended without a number."""
    ended = [run for run in runs if (run / EXECUTION).is_file() and (run / SPEC).is_file()]
    return {json.loads((run / SPEC).read_text())["seed"]: _score(run / METRICS) for run in ended}


def noise_of(root: Path, facts: Mapping[str, Any], device: str, score: float) -> Noise:
    """From every re-run under `root` of a session that is like the one with these `facts`, and the prior of `device`.

    score: of a baseline or incumbent, for the prior is a share of it.
    """
    alike = [folder for folder in _folders(root) if _key(folder.session() or {}) == _key(facts)]
    found = [result for folder in alike for result in _results(folder)]
    return measured(prior(device, score), [group for group, _ in found], [pair for _, pair in found])


def _results(folder: SessionFolder) -> Iterator[tuple[list[float], list[float]]]:
    """Of each candidate that ran on fresh seeds: its scores there, and their differences to the incumbent's."""
    trials = [trial for _, trial in folder.trials()]
    defences = [_numbers(scores(trial.defence())) for trial in trials]
    theirs = {seed: value for defence in defences for seed, value in defence.items()}  # no two incumbents share a seed
    for group in (_numbers(scores(folder.noise())), *defences):
        yield list(group.values()), []
    for trial in trials:
        fresh = _numbers(scores(trial.runs()[1:]))
        yield list(fresh.values()), [value - theirs[seed] for seed, value in fresh.items() if seed in theirs]


def _folders(root: Path) -> list[SessionFolder]:
    return [SessionFolder(root, tag) for tag in sessions(root)]


def _key(facts: Mapping[str, Any]) -> list[Any]:
    return [facts.get(name) for name in ALIKE]


def _score(metrics: Path) -> float | None:
    return float(json.loads(metrics.read_text())["val_bpb"]) if metrics.is_file() else None


def _numbers(found: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in found.items() if value is not None}
