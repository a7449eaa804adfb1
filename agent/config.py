"""Every setting once: defaults < overnight.toml < flags. And the Task: what is improved, and how it is measured."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from agent.errors import UsageError
from corpus.budget import Budget

FILE = "overnight.toml"
TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}")
PROFILES = ("train", "claimed")
METRICS = ("val_bpb",)  # what the summary block and the referee know
LEVELS = ("bwrap", "process")
DIRECTIONS = ("min", "max")
JUDGES = ("confirm", "greedy")
PRUNERS = ("conformal", "none")
PRESETS = ("conservative", "aggressive")  # of the evolve proposer
KINDS: dict[str, Any] = {"experiments": int, "seed": int, "max_usd": int | float, "prices": dict} | dict.fromkeys(
    ("targets", "fixed", "command", "model"), list | tuple | str
)


@dataclass(frozen=True)
class Task:
    """What is being improved.

    targets: files an edit may touch; fixed: files a run needs and no edit may touch. profile `train`: train.py's
    contract is checked and the harness scores the checkpoint; `claimed`: any command that prints the summary block,
    whose number is taken as claimed.
    """

    targets: tuple[str, ...] = ("train.py",)
    fixed: tuple[str, ...] = ("prepare.py",)
    command: tuple[str, ...] = ("python", "-u", "train.py")
    metric: str = "val_bpb"
    direction: str = "min"
    profile: str = "train"

    def __post_init__(self) -> None:
        _one_of("task.metric", self.metric, METRICS)
        _one_of("task.profile", self.profile, PROFILES)
        _one_of("task.direction", self.direction, DIRECTIONS)
        if not self.targets or not self.command:
            raise UsageError("task: expected at least one target file and a command, found none")

    def better(self, a: float, b: float) -> bool:
        return a < b if self.direction == "min" else a > b


@dataclass(frozen=True)
class Settings:
    """One session's settings. None means: decided when the session begins, and as it was when it goes on.

    model: one name, or several with commas between them. price: of the model in use; prices: of models by name.
    IN,OUT[,CACHED] in USD per million tokens.
    """

    tag: str | None = None
    from_rev: str | None = None
    experiments: int | None = None
    until: str | None = None
    max_usd: float | None = None
    budget: str | None = None
    data: str | None = None
    proposer: str = "auto"
    model: str | None = None
    base_url: str | None = None
    price: str | None = None
    prices: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    sampler: str = "surface"
    preset: str | None = None
    judge: str | None = None
    pruner: str | None = None
    sandbox: str | None = None
    seed: int | None = None
    task: Task = field(default_factory=Task)

    def __post_init__(self) -> None:
        if self.tag is not None and not valid_tag(self.tag):
            raise UsageError(f"tag: expected {TAG.pattern} without '..' or a final '.lock', found {self.tag!r}")
        if self.budget is not None:
            check_budget(self.budget)
        if self.experiments is not None and self.experiments < 0:
            raise UsageError(f"experiments: expected 0 or more, found {self.experiments}")
        if self.max_usd is not None and self.max_usd < 0:
            raise UsageError(f"max-usd: expected 0 or more, found {self.max_usd}")
        if self.judge is not None:
            _one_of("judge", self.judge, JUDGES)
        if self.pruner is not None:
            _one_of("pruner", self.pruner, PRUNERS)
        if self.preset is not None:
            _one_of("preset", self.preset, PRESETS)
        if self.sandbox is not None:
            _one_of("sandbox", self.sandbox, LEVELS)
        if self.until is not None:
            stop_time(self.until, datetime.now())
        if len(set(self.models)) < len(self.models):
            raise UsageError(f"model: expected each one once, found {self.model}")

    @property
    def models(self) -> tuple[str, ...]:
        """Their names, none where none is set."""
        return tuple(name for part in (self.model or "").split(",") if (name := part.strip()))


def valid_tag(tag: str) -> bool:
    """Tags become ref names and folder names, so they obey git's rules for refs as well."""
    return TAG.fullmatch(tag) is not None and ".." not in tag and not tag.endswith((".", ".lock"))


def check_budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def stop_time(until: str, now: datetime) -> datetime:
    """The next moment the clock shows `until` (HH:MM)."""
    try:
        at = datetime.strptime(until, "%H:%M")
    except ValueError:
        raise UsageError(f"until: expected a time like 07:00, found {until!r}") from None
    moment = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    return moment if moment > now else moment + timedelta(days=1)


def load(folder: Path, flags: Mapping[str, Any]) -> Settings:
    """Settings of the project in `folder`; flags that are None were not given."""
    values = _read_file(folder / FILE) | {key: value for key, value in flags.items() if value is not None}
    task = values.pop("task", {})
    known = _known(values, Settings, FILE)
    if isinstance(known.get("model"), list | tuple):
        known["model"] = ",".join(map(str, known["model"]))
    return Settings(**known, task=load_task(task))


def load_task(table: Mapping[str, Any]) -> Task:
    """A Task from a table of overnight.toml or of session.json."""
    known = _known(table, Task, f"{FILE}: [task]")
    frozen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    return Task(**frozen)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected TOML, found: {error}") from None


def _known(values: Mapping[str, Any], kind: type[Task] | type[Settings], where: str) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    for key, value in values.items():
        if key.replace("-", "_") not in names:
            raise UsageError(f"{where}: expected settings among {', '.join(sorted(names))}, found {key!r}")
        expected = KINDS.get(key.replace("-", "_"), str)
        if isinstance(value, bool) or not isinstance(value, expected):
            raise UsageError(f"{where}: expected {key} to be {expected}, found {value!r}")
    return {key.replace("-", "_"): value for key, value in values.items()}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}")
