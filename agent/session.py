"""Open a session or begin one: what it was measured on is pinned in session.json, and must not change under it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agent.candidate import digest_of
from agent.cell import Cell
from agent.config import JUDGES, PRUNERS, Settings, Task, load_task, stop_time
from agent.errors import StateError, UsageError, because
from agent.folder import SessionFolder, sessions
from agent.judge import make_judge
from agent.loop import BASELINE, Parts
from agent.machine import Machine, probe
from agent.proposers.given import NAME as GIVEN
from agent.recording import Origin
from agent.repo import Repo, branch_ref
from agent.smoke import Pace
from agent.stops import Stop
from agent.trial import Bench
from agent.values import WRITERS, Candidate, Outcome, Proposal, Proposer
from corpus.errors import DataError
from corpus.home import cache, data_folder, verify
from sandbox.isolation import Isolation, Level, detect
from sandbox.library import compiled
from sandbox.pool import Pool, Slot

TURNS = ("auto", "portfolio")  # names for all proposers that can, in turns by what they earn
SLOTS = (Slot(0, "local"),)
DEFAULT_SEED = 42
PINNED = ("hardware", "torch", "data_id")


@dataclass(frozen=True)
class Session:
    """A session's pinned facts, read or about to be written. data: folder of the prepared data, None without."""

    facts: Mapping[str, Any]
    folder: SessionFolder
    base: str
    task: Task
    budget: str
    seed: int
    data: Path | None
    data_id: str
    machine: Machine
    isolation: Isolation
    pace: Pace

    @property
    def origin(self) -> Origin:
        return Origin(self.budget, self.machine.hardware, self.machine.torch, self.data_id, SLOTS[0].name)


def latest_tag(root: Path) -> str:
    """The tag used last. StateError when there is no session yet."""
    tags = sessions(root)
    if not tags:
        raise StateError(f"session: expected one under {root / '.overnight'}, found none; start with `overnight run`")
    return tags[0]


def new_tag(root: Path) -> str:
    """Today's date, with a number where that is taken."""
    day = datetime.now().strftime("%b%d").lower()
    taken = set(sessions(root))
    return next(tag for n in range(1, 1000) if (tag := day if n == 1 else f"{day}-{n}") not in taken)


def open_session(settings: Settings, repo: Repo) -> Session:
    """Go on with the tag's session, or begin it at `from_rev`. Raise StateError if this machine cannot."""
    folder = SessionFolder(repo.root, settings.tag or new_tag(repo.root))
    folder.create()
    facts = folder.session()
    if facts is not None:
        facts = {"judge": "greedy", "pruner": "none"} | facts  # what there was before one could choose
    machine = probe()
    asked = settings.sandbox or (facts or {}).get("sandbox_asked")
    isolation = _isolation(asked)
    if facts is None:
        facts = _begin(settings, repo, machine, folder.tag)
    else:
        _refuse_others(settings, facts, repo, folder.tag)
    facts = facts | {"sandbox": isolation.level.value, "sandbox_asked": asked}
    session = Session(
        facts,
        folder,
        facts["base"],
        load_task(facts["task"]),
        facts["budget"],
        facts["seed"],
        Path(facts["data"]) if facts["data"] else None,
        facts["data_id"],
        machine,
        isolation,
        Pace(**facts.get("pace", {})),
    )
    _still_the_same(session, facts)
    return session


def _begin(settings: Settings, repo: Repo, machine: Machine, tag: str) -> dict[str, Any]:
    base = repo.resolve(settings.from_rev or "HEAD")
    _refs_are_free(repo, tag)
    repo.read(base, (*settings.task.targets, *settings.task.fixed))
    data = _data_folder(settings) if settings.task.profile == "train" else None
    return {
        "base": base,
        "task": asdict(settings.task),
        "budget": settings.budget or machine.budget,
        "judge": settings.judge or JUDGES[0],
        "pruner": settings.pruner or PRUNERS[0],
        "seed": DEFAULT_SEED if settings.seed is None else settings.seed,
        "data": str(data) if data else None,
        "data_id": _data_id(data),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "overnight": version("overnight"),
    } | machine.facts()


def _refuse_others(settings: Settings, facts: Mapping[str, Any], repo: Repo, tag: str) -> None:
    """A session that goes on keeps its settings; to ask for others is a mistake, not something to pass over."""
    wanted = {
        "budget": settings.budget,
        "seed": settings.seed,
        "judge": settings.judge,
        "pruner": settings.pruner,
        "base": repo.resolve(settings.from_rev) if settings.from_rev else None,
        "data": str(_data_folder(settings)) if settings.data else None,
    }
    for name, value in wanted.items():
        if value is not None and value != facts[name]:
            raise UsageError(f"{name}: session {tag} runs with {facts[name]}, found {value}; use another --tag")
    if settings.task != load_task(facts["task"]):
        raise UsageError(
            f"task: session {tag} began with another [task] than overnight.toml has now; use another --tag"
        )


def holds_foreign(folder: SessionFolder) -> bool:
    """Whether a model's code may be what knobs are turned in, or what is run again: somebody not offline proposed."""
    proposals = (trial.proposal() for _, trial in folder.trials())
    return any(proposal is not None and proposal.proposer in WRITERS | {GIVEN} for proposal in proposals)


def _isolation(wanted: str | None) -> Isolation:
    """The best level of this machine, or the one that is asked for. StateError where that cannot be had."""
    if wanted == Level.PROCESS:
        return Isolation(Level.PROCESS, why="--sandbox process")
    found = detect()
    if wanted == Level.BWRAP != found.level:
        raise StateError(f"sandbox: expected bwrap, found that {found.why}; or say --sandbox process")
    return found


def allow_foreign(session: Session, settings: Settings) -> None:
    """Code that a model wrote runs without a wall around it only if the user says so. Raise UsageError."""
    if session.isolation.level is Level.PROCESS and settings.sandbox != Level.PROCESS:
        raise UsageError(
            f"sandbox: expected bwrap for code that a model wrote, found that {session.isolation.why}; "
            "`--sandbox process` runs it as you, with all your files in reach"
        )


def _refs_are_free(repo: Repo, tag: str) -> None:
    """Refs without a session would be mixed with a new one's; a branch `overnight` leaves no room for ours."""
    if repo.ref("refs/heads/overnight") is not None:
        raise UsageError(
            "git: expected no branch named overnight, found one; rename it, for sessions are overnight/<tag>"
        )
    if repo.numbers(tag) or repo.ref(branch_ref(tag)) is not None:
        raise UsageError(f"tag: expected a new one, found refs of an earlier session {tag!r}; use another --tag")


def _data_folder(settings: Settings) -> Path:
    try:
        return data_folder(settings.data)
    except DataError as error:
        raise StateError(str(error)) from None


def _verify(folder: Path) -> None:
    try:
        verify(folder)
    except DataError as error:
        raise StateError(str(error)) from None


def _data_id(folder: Path | None) -> str:
    return str(_meta(folder)["data_id"]) if folder else ""


def _meta(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return loaded


def _still_the_same(session: Session, facts: dict[str, Any]) -> None:
    """Numbers compare only on the same data, hardware and torch."""
    if session.data is not None and not (session.data / "meta.json").is_file():
        raise StateError(f"data: expected {session.data}, found none; run `overnight prepare` again")
    if session.data is not None:
        _verify(session.data)
    now = session.machine.facts() | {"data_id": _data_id(session.data)}
    for name in PINNED:
        if now[name] != facts[name]:
            raise StateError(
                f"session {session.folder.tag}: expected {name} {facts[name]!r}, found {now[name]!r}; "
                "its numbers would not compare: use another --tag"
            )


def build_parts(
    session: Session,
    settings: Settings,
    repo: Repo,
    pool: Pool[Outcome],
    say: Callable[[str], None],
    proposers: Sequence[Proposer],
) -> Parts:
    """Everything the loop runs on. From here on the session is on disk: nothing that it needs is missing."""
    write(session)
    bench = make_bench(session, repo)
    until = stop_time(settings.until, datetime.now()) if settings.until else None
    return Parts(
        repo=repo,
        folder=session.folder,
        bench=bench,
        judge=make_judge(session.facts["judge"], session.task),
        proposers=proposers,
        pool=pool,
        stop=Stop(settings.experiments, until, settings.max_usd),
        origin=session.origin,
        base=session.base,
        seed=session.seed,
        say=say,
        portfolio=settings.proposer in TURNS,
    )


def write(session: Session) -> None:
    """What it was measured on is on disk before anything is measured."""
    if session.folder.session() != session.facts:
        session.folder.write_session(dict(session.facts))


def make_bench(session: Session, repo: Repo) -> Bench:
    """Where the session's candidates run, with the fixed files of its base."""
    cell = Cell(session.data, session.machine, without_text(session.isolation, session.data))
    return Bench(session.task, repo.read(session.base, session.task.fixed), cell, session.pace)


def first_code(session: Session, repo: Repo) -> Candidate:
    """What the session began with, as something to run."""
    sources = repo.read(session.base, session.task.targets)
    return Candidate(Proposal((), BASELINE, proposer=BASELINE), sources, session.base, digest_of(sources), "")


def without_text(isolation: Isolation, data: Path | None) -> Isolation:
    """Hide the interpreter's library from runs that are scored on its text. Raise StateError."""
    if data is None or isolation.level is not Level.BWRAP or _meta(data)["dataset"] != "stdlib":
        return isolation
    try:
        return replace(isolation, library=compiled(cache() / "bytecode"))
    except OSError as error:
        raise StateError(f"sandbox: expected to write below {cache()}, found: {because(error)}") from None
