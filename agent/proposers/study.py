"""Optuna's study of a search over constants, in an SQLite file that survives a kill; samplers that are held still."""

from __future__ import annotations

import warnings
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
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError

from agent.errors import StateError

NAME = "knobs"
SAMPLERS = ("surface", "tpe", "cmaes", "random")  # the first one is ours, of agent.proposers.surface
DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}


class Anchored(BaseSampler):
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


def open_study(state: Path, direction: str) -> tuple[RDBStorage, Study]:
    """direction: min or max is better. StateError where the file cannot be read or written."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = state / "knobs.sqlite"
    try:
        state.mkdir(parents=True, exist_ok=True)
        storage = RDBStorage(f"sqlite:///{path.resolve()}")
        event.listen(storage.engine, "connect", _configure)
        storage.engine.dispose()  # so that the connection it has opened is configured as well
        return storage, optuna.create_study(
            storage=storage, study_name=NAME, direction=DIRECTIONS[direction], load_if_exists=True
        )
    except (DatabaseError, OSError) as error:
        why = str(error).splitlines()[0]
        broken = "malformed" in why or "not a database" in why
        advice = "move it away to start afresh" if broken else "free the disk and run again"
        raise StateError(f"expected an Optuna study at {path}, found: {why}; {advice}") from error


@contextmanager
def stored() -> Iterator[None]:
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


def close(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def make_sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    if name == "cmaes":
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return CmaEsSampler(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
    return RandomSampler(seed=seed)
