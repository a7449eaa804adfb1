"""Which proposer a session asks when nobody named one, and that a stop condition reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.bandit import turn
from agent.clients import KEYS, split_model
from agent.config import load
from agent.errors import UsageError
from agent.ledger import Ledger
from agent.lineup import DEFAULT_MODELS, describe, make_proposers
from agent.proposers.knobs import Knobs
from agent.proposers.llm import LLM
from agent.repo import Repo
from agent.session import open_session
from agent.values import CATEGORIES, Proposer, Record
from benchmarks.wire_session import project as tiny_project
from sandbox.isolation import Isolation, Level
from tests.agent.test_loop import edit, rows, session
from tests.conftest import FAKE_TRAIN, commit_all

ROOT = Path(__file__).parents[2]
ANTHROPIC, OPENAI = "ANTHROPIC_API_KEY", "OPENAI_API_KEY"


def proposers(project: Path, **flags: str) -> tuple[list[Proposer], str]:
    """Those of a session with these flags, and how they are announced."""
    settings, repo = load(project, {"tag": "t", "budget": "10steps"} | flags), Repo(project)
    return make_proposers(open_session(settings, repo), settings, repo), describe(settings)


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
    made, announced = proposers(project, **flags)
    assert [one.name for one in made] == ["llm", "knobs", "centaur"], "no MATRIX_POLICY, no evolution"
    assert isinstance(made[0], LLM)
    assert made[0]._client.model == model
    assert announced == f"portfolio ({model}, constants and policy)"
    made[0]._client.close()


@pytest.mark.parametrize("env", [{}, {ANTHROPIC: "", OPENAI: ""}], ids=["unset", "empty"])
def test_without_a_key_it_is_the_constants(project: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (made,), announced = proposers(project, proposer="auto")
    assert isinstance(made, Knobs)
    assert (made.name, announced) == ("knobs", "portfolio (constants and policy)")


def test_a_key_does_not_overrule_the_proposer_that_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ANTHROPIC, "k")
    (made,), announced = proposers(project, proposer="knobs")
    assert isinstance(made, Knobs)
    assert announced == "knobs"


def test_a_model_without_a_key_is_refused_not_replaced(project: Path) -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
        proposers(project, model="openai:gpt-5")


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
        proposers(bare, **FOREIGN[name])
    assert proposers(bare, **FOREIGN[name], sandbox="process")[0][0].name == name


def test_constants_need_none(bare: Path) -> None:
    assert proposers(bare, proposer="knobs")[0][0].name == "knobs"


@pytest.mark.parametrize("settled", [True, False], ids=["kept", "cut-off"])
def test_constants_of_a_models_code_do(project: Path, monkeypatch: pytest.MonkeyPatch, settled: bool) -> None:
    session(project, [edit("LR = 0.5", "LR = 0.3")], experiments=1)
    if not settled:
        (project / ".overnight/t/results.tsv").unlink()
    monkeypatch.setattr("agent.session.detect", lambda: NO_WALL)
    (project / "overnight.toml").write_text('[task]\nprofile = "claimed"\nfixed = []\n')
    with pytest.raises(UsageError, match="for code that a model wrote"):
        proposers(project, proposer="knobs")
    assert proposers(project, proposer="knobs", sandbox="process")[0][0].name == "knobs"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"base_url": "http://localhost:1/v1"}, "expected --model beside --base-url"),
        ({"command": "cat"}, "expected --proposer command beside --command"),
    ],
)
def test_a_flag_that_nobody_would_use_is_refused(project: Path, flags: dict[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        proposers(project, **flags)


def test_where_train_py_has_a_policy_it_is_evolved_beside_the_constants(data: Path, tmp_path: Path) -> None:
    text = (ROOT / "tests" / "tiny_train.py").read_text().replace("BATCH = 8\n", "BATCH = 8\nMATRIX_POLICY = {}\n")
    (tmp_path / "train.py").write_text(text)
    folder = tiny_project(tmp_path / "project", tmp_path / "train.py")
    made, announced = proposers(folder, data=str(data), proposer="portfolio")
    assert [one.name for one in made] == ["knobs", "evolve"]
    assert announced == "portfolio (constants and policy)"


def test_proposers_of_a_portfolio_take_turns_and_those_in_order_do_not(project: Path) -> None:
    (project / "train.py").write_text(FAKE_TRAIN.replace("LR = 0.5", "LR = 0.5\nWIDTH = 64"))
    commit_all(project)
    replies = [edit("LR = 0.5", f"LR = 0.5{number}", category=kind) for number, kind in enumerate(CATEGORIES * 2, 1)]
    script = project.parent / "script.jsonl"
    session(project, replies, proposer="portfolio", model=f"scripted:{script}", experiments=8)
    taken = [record.proposer for record in rows(project)[1:]]
    assert len(set(taken)) > 1
    wanted = []
    for number in range(1, len(rows(project))):
        wanted.append(turn(("llm", "knobs", "centaur"), rows(project)[:number], 42))
    assert taken == wanted, "what the bandit says of the rows before"


def test_a_new_session_tries_first_what_did_best_in_an_earlier_one(project: Path) -> None:
    session(project, [], tag="a", proposer="knobs", experiments=6)
    before = rows_of(project, "a")
    best = min(record.val_bpb or 9.0 for record in before)
    assert best < (before[0].val_bpb or 0.0)
    session(project, [], tag="b", proposer="knobs", experiments=2)
    first = rows_of(project, "b")[1]
    assert (first.status, first.val_bpb) == ("keep", best)
    session(project, [], tag="c", proposer="knobs", experiments=1, budget="20steps")
    other = rows_of(project, "c")[1]
    assert other.val_bpb == min(record.val_bpb for tag in "ab" for record in rows_of(project, tag)), "another budget"


def rows_of(project: Path, tag: str) -> tuple[Record, ...]:
    return Ledger(project / ".overnight" / tag / "results.tsv").records()
