"""Proposals from a classical optimiser that turns the knobs among train.py's constants, in an Optuna study.

The search space is all knobs, for the whole study; a proposal departs from the incumbent in some of them. By default a
response surface says in which, and how far (agent.proposers.surface). Optuna's samplers know of no incumbent, and a
point drawn in all of about twenty knobs at once is far from what is known to work. With them one to three are chosen,
by turns with some luck; `Anchored` lets the sampler draw all knobs, keeps its values for the chosen ones and takes the
incumbent's for the rest, so that the point which Optuna remembers is the point that was tried.

Optuna forgets failed trials, so what crashed or was rejected is told as PENALTY, worse than anything measured; only
what was lost with a killed session is told as failed. A run that was stopped is told as pruned, with where it was
heading. Trials of others, in this session or in earlier ones on the same data and hardware, are told as well; what did
best there is tried first. The study is an SQLite file: its transactions survive a kill at any moment, where Optuna's
journal files can be left with half a line or a stale lock.
"""

from __future__ import annotations

import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from agent.constants import Value, find
from agent.errors import ProviderRefused, UsageError
from agent.experience import Experience
from agent.proposers.axis import Axis, settled
from agent.proposers.others import Others
from agent.proposers.point import applied, digest, edits_of, heading, score
from agent.proposers.study import NAME, SAMPLERS, Anchored, close, make_sampler, open_study, stored
from agent.proposers.surface import Surface
from agent.values import Edit, History, Proposal, Record

PENALTY = 1e6  # bits per byte; samplers look at ranks only
ATTEMPTS = 60  # draws before the space counts as exhausted
LUCK = 1.5  # turns by which a knob may jump the queue
FIRST = 3  # points of other sessions that are tried as they are, the best first
GUIDED = 6  # of these by the sampler; the rest at random, which cannot get stuck
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
Params: TypeAlias = Mapping[str, Any]  # Optuna's


class Knobs:
    """Implements agent.values.Proposer. A proposal's key is the number of its Optuna trial."""

    name = NAME

    def __init__(
        self, state: Path, device_type: str, *, target: str = "train.py", sampler: str = "surface", seed: int = 42,
        knobs_per_trial: tuple[int, int] = (1, 3), direction: str = "min", tag: str = "",
        known: Callable[[], Iterable[Experience]] = tuple, room_gb: float = math.inf,
    ) -> None:  # fmt: skip
        """state: a folder of this proposer's own. device_type: where train.py runs. direction: min or max is better.

        known: what trials came to, of this session (its `tag`) and of others. room_gb: memory that a trial may take.
        """
        if sampler not in SAMPLERS:
            raise UsageError(f"sampler: expected one of {' '.join(SAMPLERS)}, found {sampler!r}")
        self._device, self._target, self._seed, self._count = device_type, target, seed, knobs_per_trial
        self._sign = 1 if direction == "min" else -1
        self._tag, self._known, self._room_gb = tag, known, room_gb
        storage, self._study = open_study(state, direction)
        weakref.finalize(self, close, storage)
        self._fallback = RandomSampler(seed + len(self._trials()))
        # A resumed study draws on; with the bare seed it would repeat its first draws.
        self._sampler, self._surface = make_sampler(sampler, seed + len(self._trials())), sampler == SAMPLERS[0]

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """A point not tried before; ProviderRefused when none is left."""
        with stored():
            return self._asked(history, in_flight)

    def _asked(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        source = history.sources[self._target]
        self._give_up_lost(in_flight)
        axes = self._axes(source)
        others = Others(self._known(), source, axes, self._device, self._tag)
        self._enrol(history, axes)
        self._learn(others, axes, history)
        tried = {trial.user_attrs.get("digest") for trial in self._trials()} | {digest(source)}
        large = set[str]()
        for trial, chosen in self._draws(axes, self._untried(others.better(history)), history):
            drawn = {axis: axis.decode(trial.params[axis.key]) for axis in chosen}
            changes = {axis: value for axis, value in drawn.items() if axis.moved(value)}
            values = {axis.name: value for axis, value in changes.items()}
            edits = edits_of(self._target, source, self._device, values)
            found = digest(applied(self._target, source, edits))
            point = {axis.name: axis.constant.value for axis in axes} | values
            if found not in tried and others.fits(point, self._room_gb):
                return self._proposed(trial, edits, changes, found)
            large |= {found} - tried
            self._study.tell(trial, state=TrialState.FAIL)  # never proposed; Optuna forgets it
        raise ProviderRefused(self._exhausted(len(large)))

    def _exhausted(self, large: int) -> str:
        """Why there is no proposal. large: how many points were new, and predicted to take too much memory."""
        if large:
            return (
                f"knobs: expected points near the incumbent that fit into {self._room_gb:.3g} GiB, found {large} left, "
                f"all predicted to take more; make {self._target} smaller or take another proposer"
            )
        return (
            f"knobs: expected constants in {self._target} left to vary, found all points near the incumbent tried; "
            "widen their `# range:` comments or take another proposer"
        )

    def _untried(self, better: Sequence[tuple[str, Params]]) -> Iterator[Params]:
        """The next of the first FIRST points that did well elsewhere, each of which is tried once in a session."""
        tried: list[str] = self._study.user_attrs.get("tried", [])
        for place, params in better[:FIRST] if len(tried) < FIRST else ():
            if place not in tried and len(tried) < FIRST:
                tried = [*tried, place]
                self._study.set_user_attr("tried", tried)
                yield params

    def _draws(
        self, axes: Sequence[Axis], better: Iterable[Params], history: History
    ) -> Iterator[tuple[Trial, Sequence[Axis]]]:
        """Trials and the axes that they may turn: what did well elsewhere, whole, then draws of the sampler."""
        now = history.incumbent.val_bpb if history.incumbent else None
        for params in better if axes else ():
            yield self._draw(axes, params, self._fallback), axes
        for attempt in range(ATTEMPTS if axes else 0):
            if self._surface and now is not None and attempt < GUIDED:
                surface = Surface(axes, now, self._sign, f"{self._seed} {len(self._trials())}")
                yield self._draw(axes, {}, surface), axes
                continue
            chosen = self._choose(axes)
            held = {axis.key: axis.now for axis in axes if axis not in chosen}
            yield self._draw(axes, held, self._sampler if attempt < GUIDED else self._fallback), chosen

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """A point that fails is an answer, too: there is nothing to mend."""
        return None

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Learn from the row. What was given up as lost and ran after all is added as a trial of its own."""
        with stored():
            self._told(proposal, record)

    def _told(self, proposal: Proposal, record: Record) -> None:
        trial = next((trial for trial in self._trials() if str(trial.number) == proposal.key), None)
        if trial is None or trial.state in ENDED:
            return
        measured, toward = score(record), heading(record)
        value = self._sign * PENALTY if measured is None else measured
        if toward is None and trial.state is TrialState.RUNNING:
            self._study.tell(trial.number, value)
            return
        if trial.state is TrialState.RUNNING:  # only whoever asked may report to it, and that may have been another run
            self._study.tell(trial.number, state=TrialState.FAIL)
        seen = {round(100 * (record.fraction or 0.0)): toward} if toward is not None else None
        self._add(trial.params, trial.distributions, value, trial.user_attrs, seen, trial.system_attrs)

    # ── what the study knows ─────────────────────────────────────────────────────────────────────────────────────────

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _axes(self, source: str) -> list[Axis]:
        stored: dict[str, list[Any]] = self._study.user_attrs.get("ranges", {})
        known = len(stored)
        constants = find(source, self._device)
        axes = [settled(constant, constant.range, stored) for constant in constants if constant.range is not None]
        if len(stored) > known:
            self._study.set_user_attr("ranges", stored)
        return axes

    def _give_up_lost(self, in_flight: Sequence[Proposal]) -> None:
        """What Optuna still takes for running, and nobody runs, was lost with a session; liars must not count on it."""
        alive = {proposal.key for proposal in in_flight if proposal.proposer == NAME}
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and str(trial.number) not in alive:
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _enrol(self, history: History, axes: Sequence[Axis]) -> None:
        """The incumbent is a point as well: the baseline, or what another proposer found."""
        now, found = history.incumbent, digest(history.sources[self._target])
        known = {trial.user_attrs.get("digest") for trial in self._trials() if trial.state is TrialState.COMPLETE}
        if now is not None and now.val_bpb is not None and found not in known:
            distributions = {axis.key: axis.distribution for axis in axes}
            self._add({axis.key: axis.now for axis in axes}, distributions, now.val_bpb, {"digest": found})

    def _learn(self, others: Others, axes: Sequence[Axis], history: History) -> None:
        """What is not known yet, told once: this session's as it is, others' by their ratio to their baseline."""
        known = {trial.user_attrs.get("of") for trial in self._trials()}
        ended = {trial.user_attrs.get("digest") for trial in self._trials() if trial.state in ENDED}
        distributions = {axis.key: axis.distribution for axis in axes}
        for place, found, params, ratio in others.points:
            base = history.records[0].val_bpb if history.records else None
            if place not in known and found not in ended and base is not None:
                value = self._sign * PENALTY if ratio is None else ratio * base
                self._add(params, distributions, value, {"of": place})

    def _add(
        self,
        params: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        value: float,
        attrs: dict[str, Any],
        seen: dict[int, float] | None = None,
        system: Mapping[str, Any] | None = None,
    ) -> None:
        """seen: of a run that was stopped, percent of the budget → where it was heading then. system: what a sampler
        has noted on the trial that this one stands for; CMA-ES knows its own by that."""
        ended = {"value": value} if seen is None else {"state": TrialState.PRUNED, "intermediate_values": seen}
        self._study.add_trial(
            create_trial(
                params=params,
                distributions=distributions,
                user_attrs=dict(attrs),
                system_attrs=dict(system or {}),
                **ended,
            )
        )

    # ── a draw ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _choose(self, axes: Sequence[Axis]) -> list[Axis]:
        """Those turned least so far, give or take a turn."""
        trials = self._trials()
        turned = Counter(
            name
            for trial in trials
            if trial.state is not TrialState.FAIL
            for name in trial.user_attrs.get("turned", ())
        )
        rng = random.Random(f"{self._seed} {len(trials)}")
        order = {axis: turned[axis.name] + LUCK * rng.random() for axis in axes}
        return sorted(axes, key=lambda axis: order[axis])[: rng.randint(*self._count)]

    def _draw(self, axes: Sequence[Axis], held: Params, sampler: BaseSampler) -> Trial:
        self._study.sampler = Anchored(sampler, held)
        return self._study.ask({axis.key: axis.distribution for axis in axes})

    def _proposed(self, trial: Trial, edits: tuple[Edit, ...], changes: Mapping[Axis, Value], found: str) -> Proposal:
        trial.set_user_attr("turned", [axis.name for axis in changes])
        trial.set_user_attr("digest", found)
        description = ", ".join(axis.step(value) for axis, value in changes.items())
        names = " and ".join(axis.name for axis in changes)
        return Proposal(
            edits, description, f"The incumbent's {names} can be set better within the same budget.",
            category="hyperparameter", proposer=NAME, key=str(trial.number),
        )  # fmt: skip
