"""Which proposer a session asks when nobody named one, and that a stop condition reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.clients import KEYS, split_model
from agent.config import load
from agent.errors import UsageError
from agent.proposers.knobs import Knobs
from agent.proposers.llm import LLM
from agent.repo import Repo
from agent.session import DEFAULT_MODELS, describe, make_proposers, open_session
from agent.values import Proposer
from sandbox.isolation import Isolation, Level
from tests.agent.test_loop import edit, session

ANTHROPIC, OPENAI = "ANTHROPIC_API_KEY", "OPENAI_API_KEY"


def proposer(project: Path, **flags: str) -> tuple[Proposer, str]:
    """The only proposer of a session with these flags, and how it is announced."""
    settings, repo = load(project, {"tag": "t", "budget": "10steps"} | flags), Repo(project)
    (made,) = make_proposers(open_session(settings, repo), settings, repo)
    return made, describe(settings)


@pytest.mark.parametrize(
    ("keys", "flags", "model"),
    [
        ((ANTHROPIC,), {}, DEFAULT_MODELS["anthropic"]),
        ((OPENAI,), {}, DEFAULT_MODELS["openai"]),
        ((OPENAI, ANTHROPIC), {}, DEFAULT_MODELS["anthropic"]),
        ((OPENAI, ANTHROPIC), {"proposer": "auto", "model": "openai:gpt-5"}, "gpt-5"),
        ((ANTHROPIC,), {"model": "own", "base_url": "http://localhost:1/v1", "price": "0,0"}, "own"),
    ],
    ids=["anthropic", "openai", "both", "named", "own-server"],
)
def test_with_a_key_it_is_a_model(
    project: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], flags: dict[str, str], model: str
) -> None:
    for key in keys:
        monkeypatch.setenv(key, "k")
    made, announced = proposer(project, **flags)
    assert isinstance(made, LLM)
    assert made._client.model == model
    assert announced == f"llm ({model})"
    made._client.close()


@pytest.mark.parametrize("env", [{}, {ANTHROPIC: "", OPENAI: ""}], ids=["unset", "empty"])
def test_without_a_key_it_is_the_constants(project: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    made, announced = proposer(project, proposer="auto")
    assert isinstance(made, Knobs)
    assert (made.name, announced) == ("knobs", "knobs")


def test_a_key_does_not_overrule_the_proposer_that_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ANTHROPIC, "k")
    made, announced = proposer(project, proposer="knobs")
    assert isinstance(made, Knobs)
    assert announced == "knobs"


def test_a_model_without_a_key_is_refused_not_replaced(project: Path) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
        proposer(project, model="openai:gpt-5")


def test_every_provider_has_a_default_model_of_its_own() -> None:
    assert set(DEFAULT_MODELS) == set(KEYS)
    assert {name: split_model(model) for name, model in DEFAULT_MODELS.items()} == {
        name: (name, model) for name, model in DEFAULT_MODELS.items()
    }


def test_a_time_reaches_the_loop(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, loop = session(project, [], experiments=0, until="23:59")
    assert loop.parts.stop.until is not None
    assert f"{loop.parts.stop.until:%H:%M}" == "23:59"
    assert "until 23:59 at the latest" in capsys.readouterr().out


NO_WALL = Isolation(Level.PROCESS, why="there is no bubblewrap")
FOREIGN: dict[str, dict[str, str]] = {
    "llm": {"proposer": "llm", "model": "own", "base_url": "http://localhost:1/v1", "price": "0,0"},
    "command": {"proposer": "command", "command": "cat"},
}


@pytest.fixture
def bare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without bubblewrap, whose user has not said anything about that."""
    monkeypatch.setattr("agent.session.detect", lambda: NO_WALL)
    (project / "overnight.toml").write_text('[task]\nprofile = "claimed"\nfixed = []\n')
    return project


@pytest.mark.parametrize("name", FOREIGN)
def test_a_models_code_needs_a_wall_or_the_users_word(bare: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected bwrap for code that a model wrote, found that there is no bubble"):
        proposer(bare, **FOREIGN[name])
    assert proposer(bare, **FOREIGN[name], sandbox="process")[0].name == name


def test_constants_need_none(bare: Path) -> None:
    assert proposer(bare, proposer="knobs")[0].name == "knobs"


@pytest.mark.parametrize("settled", [True, False], ids=["kept", "cut-off"])
def test_constants_of_a_models_code_do(project: Path, monkeypatch: pytest.MonkeyPatch, settled: bool) -> None:
    session(project, [edit("LR = 0.5", "LR = 0.3")], experiments=1)
    if not settled:
        (project / ".overnight/t/results.tsv").unlink()
    monkeypatch.setattr("agent.session.detect", lambda: NO_WALL)
    (project / "overnight.toml").write_text('[task]\nprofile = "claimed"\nfixed = []\n')
    with pytest.raises(UsageError, match="for code that a model wrote"):
        proposer(project, proposer="knobs")
    assert proposer(project, proposer="knobs", sandbox="process")[0].name == "knobs"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"base_url": "http://localhost:1/v1"}, "expected --model beside --base-url"),
        ({"command": "cat"}, "expected --proposer command beside --command"),
    ],
)
def test_a_flag_that_nobody_would_use_is_refused(project: Path, flags: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        proposer(project, **flags)
