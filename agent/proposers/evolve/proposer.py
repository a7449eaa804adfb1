"""Evolution as a proposer: each run that the tournament wants is an ordinary proposal, on the session's real trainer.

Screens and promotions are of other budgets than the session's: the judge ranks none of them, and their scores come back
in their rows. What survives is proposed as an ordinary trial; whether it is kept is not decided here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from agent.errors import ProviderRefused, UsageError, Waiting
from agent.noise import Spread, prior
from agent.proposers.evolve import literal
from agent.proposers.evolve.archive import (
    PRESETS,
    Archive,
    Preset,
    Result,
    Stage,
    Wanted,
    load,
    save,
    wanted,
)
from agent.proposers.evolve.breeding import bred, founded, incumbent
from agent.proposers.evolve.genome import Policy
from agent.proposers.evolve.tournament import SEEDS, SHARES, decided, next_run
from agent.values import History, Proposal, Purpose, Record, Status
from corpus.budget import Budget

NAME = "evolve"
Curve = Callable[[int], Sequence[Mapping[str, Any]]]


class Evolve:
    """Implements agent.values.Proposer. A proposal's key is the run that it is, as JSON."""

    name = NAME

    def __init__(
        self, state: Path, source: str, curve: Curve, *, budget: str, preset: Preset | None = None,
        target: str = "train.py", seed: int = 42, direction: str = "min",
    ) -> None:  # fmt: skip
        """state: a folder of this proposer's own. source: of the target at the session's base. curve: trial → rows of
        its curve.jsonl. budget: the session's. preset: None for that of the state, else conservative. UsageError."""
        _policy(source, target, UsageError)
        self._state, self._curve, self._target = state, curve, target
        self._budget = Budget.parse(budget)
        known = load(state)
        if known is not None and preset not in (None, known.preset):
            asked = "" if preset is None else preset.name
            raise UsageError(f"{NAME}: this session runs with {known.preset.name}, found {asked}; use another --tag")
        self.archive = known or Archive(preset or PRESETS["conservative"], seed, direction)
        save(state, self.archive)  # the preset that was asked for outlives a kill in the baseline

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """The next run of the tournament; Waiting at the end of a stage, ProviderRefused of all generations."""
        source = history.sources[self._target]
        policy = _policy(source, self._target, ProviderRefused)
        base, busy = self._base(history), [_run(one) for one in in_flight if one.proposer == NAME]
        while True:
            self._decide(self._spread(history))
            run = next_run(self.archive)
            if run is None:
                self._next_generation(policy, base)
            elif (row := self._untold(run, history)) is not None:
                self._learn(self.archive.told(self._result(run, row)))
            elif (moved := self._moved(policy, base)) != self.archive:
                self._learn(moved)
            elif (free := next_run(self.archive, busy)) is None:
                raise Waiting(f"{NAME}: waits for its runs in flight, whose results decide what follows")
            else:
                return self._proposal(free, source)

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """A policy that fails is an answer, too: there is nothing to mend."""
        return None

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Into the archive, and onto the disk."""
        run = _run(proposal)
        if self.archive.result(run) is None:
            self._learn(self.archive.told(self._result(run, record)))

    def estimate(self, train: float, rest: float) -> str:
        """What is left, for a person, before it is spent. train: seconds of training at the session's budget; rest:
        seconds around every training, whatever its budget."""
        left = self._left()
        seconds = sum(count * (SHARES[stage] * train + rest) for stage, count in left.items())
        trials = f"{self._preset.generations * _promoted(self._preset)} trials at most for what survives"
        return (
            f"{NAME} {self._preset.name} ({self._preset.generations} generations x {self._preset.size}): "
            f"{left[Stage.SCREEN]} screens and {left[Stage.PROMOTION]} promotion runs left, "
            f"about {seconds / 3600:.1f} hours, and {trials}"
        )

    @property
    def _preset(self) -> Preset:
        return self.archive.preset

    def _left(self) -> dict[Stage, int]:
        """Runs that the rest of the preset takes, trials left out: nobody knows how many survive."""
        each = {Stage.SCREEN: self._preset.size + 1, Stage.PROMOTION: SEEDS * (1 + _promoted(self._preset))}
        done = {stage: sum(one.run.stage is stage for one in self.archive.results) for stage in each}
        more = {Stage.SCREEN: 2, Stage.PROMOTION: 0}  # the bad ones of generation 0
        return {stage: max(0, self._preset.generations * each[stage] + more[stage] - done[stage]) for stage in each}

    # ── the archive ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _learn(self, archive: Archive) -> None:
        if archive != self.archive:
            save(self._state, archive)
            self.archive = archive

    def _decide(self, spread: Spread) -> None:
        while (archive := decided(self.archive, spread)) != self.archive:
            self._learn(archive)

    def _moved(self, policy: Policy, base: str) -> Archive:
        """Beside an incumbent that somebody else has changed, what the generation has decided is decided anew. Runs
        count on beside the code they ran beside."""
        now = self.archive.generations[-1]
        archive = self.archive.joined((incumbent(policy, now.number),))
        same = (now.base, now.reference) == (base, policy.id)
        again = replace(now, base=base, reference=policy.id, promoted=None, survivors=None)
        return self.archive if same else archive.revised(again)

    def _next_generation(self, policy: Policy, base: str) -> None:
        done = len(self.archive.generations)
        if done >= self._preset.generations:
            raise ProviderRefused(
                f"{NAME}: expected generations left of {self._preset.name}, found all {done} done; see `overnight "
                "lineage`, and use another --tag or proposer to go on"
            )
        self._learn((bred if done else founded)(self.archive, policy, base))

    def _untold(self, run: Wanted, history: History) -> Record | None:
        """A row that was written and, because the session was killed just then, never told."""
        known, seed = {one.trial for one in self.archive.results}, run.seed
        same = (NAME, self._description(run))
        rows = [one for one in history.records if (one.proposer, one.description) == same and one.trial not in known]
        return next((one for one in reversed(rows) if seed is None or one.seed == seed), None)

    def _result(self, run: Wanted, record: Record) -> Result:
        ran = record.status in (Status.KEEP, Status.DISCARD)
        tokens, seconds = record.tokens_M, record.train_seconds
        speed = 1e6 * tokens / seconds if tokens and seconds else None
        rise = rise_of(self._curve(record.trial)) if record.trial is not None and ran else None
        return Result(run, record.trial, record.status, record.val_bpb if ran else None, speed, rise)

    # ── the proposal ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _proposal(self, run: Wanted, source: str) -> Proposal:
        policy, stage = self.archive.individuals[run.id].policy, run.stage
        return Proposal(
            literal.edits(self._target, source, policy),
            self._description(run),
            hypothesis=f"This policy trains better than the incumbent's: {policy.text}",
            category="optimizer",
            proposer=NAME,
            key=json.dumps(asdict(run)),
            budget=None if stage is Stage.TRIAL else scaled(self._budget, SHARES[stage]),
            seed=run.seed,
            purpose=Purpose.CONFIRM if stage is Stage.PROMOTION else Purpose.SCREEN,
        )

    def _description(self, run: Wanted) -> str:
        one = self.archive.individuals[run.id]
        return f"{one.operator}: {one.change} [{run.id}, {run.stage} of generation {run.generation}]"

    def _base(self, history: History) -> str:
        """Hash of all code but the policy."""
        sources = {**history.sources, self._target: literal.without(history.sources[self._target])}
        return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:12]

    def _spread(self, history: History) -> Spread:
        now = history.incumbent.val_bpb if history.incumbent else None
        return prior(history.device, now or 1.0).paired


def _policy(source: str, target: str, error: type[UsageError] | type[ProviderRefused]) -> Policy:
    try:
        return literal.read(source)
    except ValueError as problem:
        raise error(f"{NAME}: {target}: {problem}; write MATRIX_POLICY = {{}} or take another proposer") from None


def _run(proposal: Proposal) -> Wanted:
    return wanted(json.loads(proposal.key))


def rise_of(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The furthest that the loss has been above its lowest so far, in nats, 3 digits; None without a curve."""
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), int | float) and math.isfinite(row["loss"])]
    lowest = accumulate(losses, min)
    return round(max(now - low for now, low in zip(losses, lowest, strict=True)), 3) if losses else None


def scaled(budget: Budget, share: float) -> str:
    """A share of a budget, as it is written."""
    return f"{budget.amount * share:.6g}{budget.unit}"


def _promoted(preset: Preset) -> int:
    return max(2, math.ceil(preset.size / 4))
