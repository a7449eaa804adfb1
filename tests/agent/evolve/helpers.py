"""A train.py whose loss follows from policy and seed, for sessions of a tenth of a second a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import load
from agent.loop import Loop
from agent.proposers.evolve.archive import Preset
from agent.proposers.evolve.proposer import Evolve
from agent.repo import Repo
from agent.session import SLOTS, build_parts, open_session
from agent.values import Outcome, Proposer
from sandbox.pool import LocalPool, Slot
from tests.conftest import CLAIMED, commit_all

TRAIN = """\
import json, math, os, random
LR = 0.5
MATRIX_POLICY = {}  # fields of MatrixPolicy
spec = json.load(open(os.environ["OVERNIGHT_TRIAL"]))
steps = float(spec["budget"].removesuffix("steps"))
policy = {"ns_steps": 5, "update_multiplier": 1.0, "orthogonalisation": "polar_express"} | MATRIX_POLICY
loss = 1.0 + (LR - 0.5) ** 2 + 1.0 / steps + random.Random(spec["seed"]).gauss(0, 0.01)
loss += 0.02 * abs(policy["ns_steps"] - 3) + 0.05 * abs(math.log(policy["update_multiplier"] / 0.7))
loss += 1.0 * (policy["orthogonalisation"] == "none") + 0.01 * (policy.get("clip", "none") != "none")
numbers = dict(training_seconds=0.1, total_seconds=0.2, peak_vram_mb=10.0, mfu_percent=1.0, total_tokens_M=0.1)
print("---", f"val_bpb: {loss:.6f}", *(f"{k}: {v}" for k, v in numbers.items()), sep="\\n")
print("num_steps: 10", "num_params_M: 0.1", "depth: 1", sep="\\n")
"""
SMALL = Preset("small", 2, 4)


def prepared(project: Path, train: str = TRAIN) -> Path:
    """The project with that train.py."""
    (project / "train.py").write_text(train)
    (project / "overnight.toml").write_text(CLAIMED)
    commit_all(project, "a policy")
    return project


def run(
    project: Path,
    preset: Preset | None = SMALL,
    slots: Sequence[Slot] = SLOTS,
    beside: Sequence[Proposer] = (),
    **flags: object,
) -> tuple[str, Loop, Evolve]:
    """A session of evolve until it stops: the reason, its loop and its proposer. beside: who is asked where evolve does
    not answer. Nobody is overloaded, so that there is nothing to sleep for."""
    settings = load(project, {"tag": "t", "budget": "100steps", **flags})
    repo = Repo(project)
    session = open_session(settings, repo)
    folder = session.folder
    with folder.lock(), LocalPool[Outcome](slots) as pool:
        evolve = Evolve(
            folder.proposer("evolve"),
            repo.read(session.base, ["train.py"])["train.py"],
            lambda trial: folder.trial(trial).curve(),
            budget=session.budget,
            preset=preset,
            seed=session.seed,
        )
        parts = build_parts(session, settings, repo, pool, print, [evolve, *beside])
        loop = Loop(replace(parts, sleep=lambda seconds: pytest.fail(f"it sleeps {seconds} s")))
        return loop.run(), loop, evolve
