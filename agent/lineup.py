"""Who proposes in a session: those that were named, or a portfolio of all that can."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.cell import MEMORY_SHARE
from agent.clients import KEYS, split_model
from agent.config import Settings
from agent.errors import UsageError
from agent.experience import experience
from agent.proposers.command import Command
from agent.proposers.evolve import literal
from agent.proposers.evolve.archive import PRESETS
from agent.proposers.evolve.proposer import Evolve
from agent.proposers.models import client_of, make_llm
from agent.repo import Repo
from agent.session import TURNS, Session, allow_foreign, holds_foreign
from agent.values import WRITERS, Proposer

DEFAULT_MODELS = {"anthropic": "claude-sonnet-5-5", "openai": "gpt-5.5"}


def make_proposers(
    session: Session, settings: Settings, repo: Repo, say: Callable[[str], None] = print
) -> list[Proposer]:
    """Those named in `proposer`, comma-separated, or the portfolio's."""
    settings = with_model(settings)
    if settings.proposer == "auto" and settings.model is None and (settings.base_url or settings.command):
        given, wanted = ("--base-url", "--model") if settings.base_url else ("--command", "--proposer command")
        raise UsageError(f"proposer: expected {wanted} beside {given}, found none")
    names = [name.strip() for name in settings.proposer.split(",")]
    if settings.proposer in TURNS:
        names = _portfolio(session, settings, repo)
    if set(names) & WRITERS or holds_foreign(session.folder):
        allow_foreign(session, settings)
    return [_proposer(name, session, settings, repo, say) for name in names]


def _portfolio(session: Session, settings: Settings, repo: Repo) -> list[str]:
    """With a model all; without, constants and, where train.py has one, the policy."""
    names = ["llm", "knobs", "centaur"] if settings.model else ["knobs"]
    target = session.task.targets[0]
    try:
        literal.read(repo.read(session.base, [target])[target])
    except ValueError:
        return names
    return [*names, "evolve"] if session.task.profile == "train" else names


def with_model(settings: Settings) -> Settings:
    """Without --model, the default model of the provider whose key is set."""
    if settings.model is not None:
        return settings
    provider = next((name for name, key in KEYS.items() if os.environ.get(key)), None)
    return replace(settings, model=DEFAULT_MODELS[provider]) if provider else settings


def _proposer(name: str, session: Session, settings: Settings, repo: Repo, say: Callable[[str], None]) -> Proposer:
    state = session.folder.proposer(name)
    match name:
        case "knobs":
            from agent.proposers.knobs import Knobs  # Optuna takes a second to import

            return Knobs(
                state,
                session.machine.device,
                target=session.task.targets[0],
                sampler=settings.sampler,
                seed=session.seed,
                direction=session.task.direction,
                tag=session.folder.tag,
                known=lambda: experience(repo.root, session.facts, session.task.targets[0]),
                room_gb=session.machine.memory_gb * (MEMORY_SHARE if session.machine.device != "cuda" else 1.0),
            )
        case "centaur":
            from agent.proposers.centaur import Centaur

            return Centaur(
                state,
                session.machine.device,
                client=client_of(settings, state) if settings.models else None,
                target=session.task.targets[0],
                seed=session.seed,
                direction=session.task.direction,
                say=say,
            )
        case "evolve":
            return _evolve(state, session, settings, repo)
        case "llm":
            return make_llm(settings, program=_program(repo), state=state, seed=session.seed, say=say)
        case "command":
            if not settings.command:
                raise UsageError("command: expected --command, e.g. --command 'claude -p', found none")
            return Command(settings.command, program=_program(repo))
    raise UsageError(f"proposer: expected portfolio, llm, knobs, centaur, evolve or command, found {name!r}")


def _evolve(state: Path, session: Session, settings: Settings, repo: Repo) -> Proposer:
    def curve(trial: int) -> list[dict[str, Any]]:
        return session.folder.trial(trial).curve()

    target = session.task.targets[0]
    return Evolve(
        state,
        repo.read(session.base, [target])[target],
        curve,
        budget=session.budget,
        preset=PRESETS[settings.preset] if settings.preset else None,
        target=target,
        seed=session.seed,
        direction=session.task.direction,
    )


def _program(repo: Repo) -> str:
    path = repo.root / "program.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def describe(settings: Settings) -> str:
    """Who will be asked, for a line before the session starts."""
    settings = with_model(settings)
    models = ", ".join(split_model(model)[1] for model in settings.models)
    if settings.proposer in TURNS:
        return f"portfolio ({models and f'{models}, '}constants and policy)"
    if settings.proposer == "centaur":
        return f"centaur (CMA-ES and {models.split(', ')[0]})" if models else "centaur (CMA-ES alone: no model)"
    return settings.proposer
