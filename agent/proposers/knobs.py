"""Proposals from a classical optimiser: Optuna turns the knobs among train.py's constants, a few at a time.

The search space is all knobs, for the whole study; a proposal departs from the incumbent in one to three of them. A
night has tens of trials and there are about twenty knobs: a point drawn in all of them at once is far from what is
known to work, and when it fails nobody can tell why. Which knobs are turned goes by turns, with some luck: a bandit
that prefers knobs which won before has too few, too noisy results to learn from. How far is the sampler's to say.
`_Anchored` lets it draw all knobs, keeps its values for the chosen ones and takes the incumbent's for the rest, so that
the point which Optuna remembers is the point that was tried.

Optuna forgets failed trials, so what crashed or was rejected is told as PENALTY, worse than anything measured; only
what was lost with a killed session is told as failed. A run that was stopped is told as pruned, with where it was
heading. The study is an SQLite file: its transactions survive a kill at
any moment, where Optuna's journal files can be left with half a line or a stale lock.
"""

from __future__ import annotations

import random
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError

from agent.constants import Value, find
from agent.errors import ProviderRefused, StateError, UsageError
from agent.proposers.axis import Axis, settled
from agent.proposers.point import applied, digest, edits_of, heading, score
from agent.values import Edit, History, Proposal, Record

NAME = "knobs"
SAMPLERS = ("tpe", "cmaes", "random")
PENALTY = 1e6  # bits per byte; samplers look at ranks only
ATTEMPTS = 60  # draws before the space counts as exhausted
LUCK = 1.5  # turns by which a knob may jump the queue
GUIDED = 6  # of these by the sampler; the rest at random, which cannot get stuck


class Knobs:
    """Implements agent.values.Proposer. A proposal's key is the number of its Optuna trial."""

    name = NAME

    def __init__(
        self, state: Path, device_type: str, *, target: str = "train.py", sampler: str = "tpe", seed: int = 42,
        knobs_per_trial: tuple[int, int] = (1, 3), direction: str = "min",
    ) -> None:  # fmt: skip
        """state: a folder of this proposer's own. device_type: where train.py runs. direction: min or max is better."""
        if sampler not in SAMPLERS:
            raise UsageError(f"sampler: expected one of {' '.join(SAMPLERS)}, found {sampler!r}")
        self._device, self._target, self._seed, self._count = device_type, target, seed, knobs_per_trial
        self._sign = 1 if direction == "min" else -1
        storage, self._study = _open(state, StudyDirection.MINIMIZE if direction == "min" else StudyDirection.MAXIMIZE)
        weakref.finalize(self, _close, storage)
        self._fallback = RandomSampler(seed + len(self._trials()))
        # A resumed study draws on; with the bare seed it would repeat its first draws.
        self._sampler = _sampler(sampler, seed + len(self._trials()))

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """A point not tried before, one to three knobs from the incumbent; ProviderRefused when none is left."""
        with _stored():
            return self._asked(history, in_flight)

    def _asked(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        source = history.sources[self._target]
        self._give_up_lost(in_flight)
        axes = self._axes(source)
        self._enrol(history, axes)
        tried = {trial.user_attrs.get("digest") for trial in self._trials()} | {digest(source)}
        for attempt in range(ATTEMPTS if axes else 0):
            chosen = self._choose(axes)
            trial = self._draw(axes, chosen, self._sampler if attempt < GUIDED else self._fallback)
            drawn = {axis: axis.decode(trial.params[axis.key]) for axis in chosen}
            changes = {axis: value for axis, value in drawn.items() if axis.moved(value)}
            values = {axis.name: value for axis, value in changes.items()}
            edits = edits_of(self._target, source, self._device, values)
            found = digest(applied(self._target, source, edits))
            if found not in tried:
                return self._proposed(trial, edits, changes, found)
            self._study.tell(trial, state=TrialState.FAIL)  # never proposed; Optuna forgets it
        raise ProviderRefused(
            f"knobs: expected constants in {self._target} left to vary, found all points near the incumbent tried; "
            "widen their `# range:` comments or take another proposer"
        )

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """A point that fails is an answer, too: there is nothing to mend."""
        return None

    def tell(self, proposal: Proposal, record: Record) -> None:
        """Learn from the row. What was given up as lost and ran after all is added as a trial of its own."""
        with _stored():
            self._told(proposal, record)

    def _told(self, proposal: Proposal, record: Record) -> None:
        trial = next((trial for trial in self._trials() if str(trial.number) == proposal.key), None)
        if trial is None or trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        measured, toward = score(record), heading(record)
        value = self._sign * PENALTY if measured is None else measured
        if toward is None and trial.state is TrialState.RUNNING:
            self._study.tell(trial.number, value)
            return
        if trial.state is TrialState.RUNNING:  # only whoever asked may report to it, and that may have been another run
            self._study.tell(trial.number, state=TrialState.FAIL)
        seen = {round(100 * (record.fraction or 0.0)): toward} if toward is not None else None
        self._add(trial.params, trial.distributions, value, trial.user_attrs, seen)

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

    def _add(
        self,
        params: dict[str, Any],
        distributions: dict[str, BaseDistribution],
        value: float,
        attrs: dict[str, Any],
        seen: dict[int, float] | None = None,
    ) -> None:
        """seen: of a run that was stopped, percent of the budget → where it was heading then."""
        ended = {"value": value} if seen is None else {"state": TrialState.PRUNED, "intermediate_values": seen}
        self._study.add_trial(create_trial(params=params, distributions=distributions, user_attrs=dict(attrs), **ended))

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

    def _draw(self, axes: Sequence[Axis], chosen: Sequence[Axis], sampler: BaseSampler) -> Trial:
        self._study.sampler = _Anchored(sampler, {axis.key: axis.now for axis in axes if axis not in chosen})
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


class _Anchored(BaseSampler):
    """Draws as `base` does, but gives the parameters in `fixed` their values.

    Unlike optuna's PartialFixedSampler it leaves the search space whole, which CMA-ES needs: its covariance matrix has
    one row for each parameter, and it would start anew whenever their number changes.
    """

    def __init__(self, base: BaseSampler, fixed: Mapping[str, Any]) -> None:
        self._base, self._fixed = base, fixed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._base.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self._base.sample_relative(study, trial, search_space)
        return {key: self._fixed.get(key, value) for key, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._fixed:
            return self._fixed[param_name]
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._base.after_trial(study, trial, state, values)


def _open(state: Path, direction: StudyDirection) -> tuple[RDBStorage, Study]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = state / "knobs.sqlite"
    try:
        state.mkdir(parents=True, exist_ok=True)
        storage = RDBStorage(f"sqlite:///{path.resolve()}")
        event.listen(storage.engine, "connect", _configure)
        storage.engine.dispose()  # so that the connection it has opened is configured as well
        return storage, optuna.create_study(storage=storage, study_name=NAME, direction=direction, load_if_exists=True)
    except (DatabaseError, OSError) as error:
        why = str(error).splitlines()[0]
        broken = "malformed" in why or "not a database" in why
        advice = "move it away to start afresh" if broken else "free the disk and run again"
        raise StateError(f"expected an Optuna study at {path}, found: {why}; {advice}") from error


@contextmanager
def _stored() -> Iterator[None]:
    """A study that cannot be written (a full disk, a file taken away) ends the session in one line, to go on later."""
    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise StateError(
            f"knobs: expected to write the study, found: {str(cause).splitlines()[0]}; free the disk and run again"
        ) from error


def _configure(connection: DBAPIConnection, _: object) -> None:
    """A write-ahead log spares an fsync for each of the twenty writes of a proposal; it survives a kill as well."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    if name == "cmaes":
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
    return RandomSampler(seed=seed)
