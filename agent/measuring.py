"""Noise, measured: the code that a session began with, trained on seeds of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from statistics import fmean
from typing import Any

from agent.errors import StateError
from agent.folder import SessionFolder, drop_weights
from agent.noise import Spread, prior
from agent.reruns import ALIKE, noise_of, scores
from agent.trial import Bench
from agent.values import Candidate
from sandbox.pool import Slot

SLOT = Slot(0, "noise")
INTERVAL = 0.8


def seeds_of(seed: int, count: int) -> list[int]:
    """The same ones whenever it is asked, and none that a trial has. seed: of the session."""
    digests = (sha256(f"noise {seed} {number}".encode()).digest() for number in range(count))
    return [int.from_bytes(digest[:4], "big") % 2**31 for digest in digests]


def measure(
    bench: Bench, folder: SessionFolder, candidate: Candidate, seeds: Sequence[int], budget: str
) -> Iterator[tuple[int, float | None]]:
    """Seed and score of each run, None where it ended badly; those that are there already are not made again."""
    there = scores(folder.noise())
    smoke = None if set(seeds) <= there.keys() else bench.smoke(candidate, folder.path / "smoke", budget, SLOT)
    for seed in seeds:
        if seed not in there:
            place = folder.noise_run(seed)
            bench.run(candidate, place, seed=seed, budget=budget, smoke=smoke, slot=SLOT, cancel=threading.Event())
            drop_weights(place)
            there = scores(folder.noise())
        if seed not in there:
            raise StateError("noise: interrupted; the same command goes on")
        yield seed, there[seed]


def report(
    folder: SessionFolder, facts: Mapping[str, Any], device: str, found: Mapping[int, float | None]
) -> dict[str, Any]:
    """What is known of noise where this session runs. facts: of the session. found: seed → score of its own code.

    Raise StateError without any score: the prior is a share of it.
    """
    known = [value for value in found.values() if value is not None]
    if not known:
        raise StateError("noise: expected a run with a score, found none; `--seeds 2` makes some")
    score = fmean(known)
    noise, before = noise_of(folder.root, facts, device, score), prior(device, score)
    pairs = {"over_seeds": (noise.over_seeds, before.over_seeds), "paired": (noise.paired, before.paired)}
    return {
        **{name: facts[name] for name in ALIKE},
        "scores": dict(found),
        "mean": score,
        **{name: _facts(now, then) for name, (now, then) in pairs.items()},
    }


def _facts(now: Spread, then: Spread) -> dict[str, float]:
    low, high = now.interval(INTERVAL)
    return {
        "sd": now.sd, "low": low, "high": high, "measured_dof": now.dof - then.dof,
        "prior_sd": then.sd, "prior_dof": then.dof,
    }  # fmt: skip


def as_text(facts: Mapping[str, Any]) -> str:
    """Lines for a person."""
    where = ", ".join(str(facts[name]) for name in ALIKE if facts[name])
    names = {"over_seeds": "one run, from seed to seed", "paired": "difference of two candidates on one seed"}
    lines = [f"{where}; mean {facts['mean']:.6f}"]
    for key, name in names.items():
        row = facts[key]
        lines.append(
            f"{name}: sigma {row['sd']:.6f} ({INTERVAL:.0%} interval {row['low']:.6f} to {row['high']:.6f}), from "
            f"{row['measured_dof']:.0f} degrees of freedom and a prior of {row['prior_sd']:.6f} worth "
            f"{row['prior_dof']:.0f}"
        )
    return "\n".join(lines)
