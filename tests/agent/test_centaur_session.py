"""The centaur in whole sessions: real git, real children, a scripted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.errors import UsageError
from agent.proposers.centaur import Centaur
from agent.proposers.centaur.state import load
from agent.proposers.llm import LLM
from agent.proposers.team import Team
from agent.repo import Repo
from agent.values import Record
from benchmarks.wire_server import WireServer, tool
from tests.agent.test_loop import edit, rows, session, statuses
from tests.agent.test_session import proposers
from tests.conftest import FAKE_TRAIN, commit_all

KNOBS = "LR = 0.5\nDECAY = 0.3  # range: 0.0..1.0\nFLAG = False\n"
TRAIN = FAKE_TRAIN.replace("LR = 0.5\n", KNOBS).replace("(LR - 0.1) ** 2", "(LR - 0.1) ** 2 + DECAY**2 + 0.1 * FLAG")
STATE = ".overnight/t/proposers/centaur/centaur.json"


@pytest.fixture
def knobs(project: Path) -> Path:
    """A project whose train.py has three knobs."""
    (project / "train.py").write_text(TRAIN)
    commit_all(project)
    return project


def centaur(project: Path, experiments: int, replies: list[dict[str, Any]] | None = None) -> list[Record]:
    """Run so many experiments of the session; its rows. Without replies there is no model."""
    without = {"model": None} if replies is None else {}
    session(project, replies or [], proposer="centaur", experiments=experiments, **without)
    return list(rows(project))


def test_without_a_key_it_is_cma_es_and_a_stop_changes_nothing(knobs: Path, tmp_path: Path) -> None:
    through = centaur(knobs, 6)
    (knobs / ".overnight/t").rename(tmp_path / "before")
    session_of_its_own = {"tag": "u", "proposer": "centaur", "model": None}
    for experiments in (2, 4, 6):
        session(knobs, [], experiments=experiments, **session_of_its_own)
    state = load(knobs / ".overnight/u/proposers/centaur/centaur.json")
    assert [answer.trial for answer in state.told] == list(range(7))
    assert state == load(tmp_path / "before/proposers/centaur/centaur.json")
    assert {record.proposer for record in through[1:]} == {"centaur"}
    assert {record.category for record in through[1:]} == {"hyperparameter"}
    assert sum(record.cost_usd or 0.0 for record in through) == 0.0


def test_a_scripted_model_overrides_after_the_warm_up(knobs: Path) -> None:
    good = {"tool": {"knobs": {"LR": 0.126, "DECAY": 0.001}, "why": "both are too high"}, "cost_usd": 0.25}
    unreadable = {"text": "let me think", "cost_usd": 0.5}
    found = centaur(knobs, 17, [good, unreadable, unreadable])
    paid = [record for record in found if record.cost_usd]
    assert [record.cost_usd for record in paid] == [0.25, 1.0]
    assert paid[0].trial is not None
    assert paid[0].trial > 10
    assert paid[0].status == "keep"
    assert "LR" in paid[0].description
    assert paid[1].status in ("keep", "discard"), "CMA-ES's own suggestion ran in its place"
    state = load(knobs / STATE)
    assert [answer.trial for answer in state.told if state.asked[answer.number].by == "model"] == [paid[0].trial]
    folder = knobs / f".overnight/t/trials/{paid[0].trial}"
    assert "What CMA-ES suggests" in (folder / "prompt.txt").read_text()
    assert "both are too high" in json.loads((folder / "proposal.json").read_text())["hypothesis"]


def test_code_and_knobs_together(knobs: Path) -> None:
    """A model's code edit wins; the next proposals turn the knobs of the new code, the new one among them."""
    centaur(knobs, 3)
    now = Repo(knobs).read("overnight/t", ["train.py"])["train.py"]
    line = next(line for line in now.splitlines() if line.startswith("FLAG"))
    formula = next(line for line in now.splitlines() if line.startswith("loss"))
    wins = edit(line, f"{line}\nGAIN = 0.5  # range: 0.0..1.0", "a gain", "architecture")
    wins["tool"]["edits"].append({"path": "train.py", "search": formula, "replace": f"{formula} - 1.0 - GAIN * 0.01"})
    session(knobs, [wins], experiments=4)
    assert statuses(knobs)[-1] == "keep"
    session(knobs, [], proposer="centaur", model=None, experiments=6)
    last = rows(knobs)[-1]
    assert last.proposer == "centaur"
    source = Repo(knobs).read(f"refs/overnight/t/{last.trial}", ["train.py"])["train.py"]
    assert "GAIN * 0.01" in source
    state = load(knobs / STATE)
    assert [key.split()[0] for key in state.origins[-1].keys] == ["LR", "DECAY", "FLAG", "GAIN"]
    assert len(state.origins) == 2
    assert [asked.by for asked in state.asked if asked.search == 1] == ["origin", "CMA-ES", "CMA-ES"]


# ── how it is asked for ──────────────────────────────────────────────────────────────────────────────────────────────


def test_it_says_whether_a_model_is_there(project: Path) -> None:
    (made,), announced = proposers(project, proposer="centaur")
    assert isinstance(made, Centaur)
    assert announced == "centaur (CMA-ES alone: no model)"
    given = {"proposer": "centaur", "model": "own", "base_url": "http://localhost:1/v1", "price": "0,0"}
    assert proposers(project, **given)[1] == "centaur (CMA-ES and own)"


def test_several_models_are_a_team(project: Path) -> None:
    address = {"base_url": "http://localhost:1/v1", "price": "0,0"}
    (made, *others), announced = proposers(project, model="one,two:8b", **address)
    assert isinstance(made, Team)
    assert (made.name, announced) == ("llm", "portfolio (one, two:8b, constants and policy)")
    assert [one.name for one in others] == ["knobs", "centaur"]
    (made,), _ = proposers(project, proposer="llm", model="one", **address)
    assert isinstance(made, LLM)
    with pytest.raises(UsageError, match="expected each one once"):
        proposers(project, model="one,one", **address)
    with pytest.raises(UsageError, match=r"under \[prices\]"):
        proposers(project, model="openai:one,openai:two", price="1,2")


def test_models_may_stand_in_the_settings_file(project: Path) -> None:
    with (project / "overnight.toml").open("r+") as settings:
        text = settings.read()
        settings.seek(0)
        settings.write('model = ["one", "two"]\nprice = "0,0"\nbase_url = "http://localhost:1/v1"\n' + text)
    assert proposers(project)[1] == "portfolio (one, two, constants and policy)"


def test_a_named_provider_is_not_asked_at_the_address_of_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    flags = {"model": "anthropic:claude-sonnet-4-5,own", "base_url": "http://localhost:1/v1", "price": "0,0"}
    (made, *_), _ = proposers(project, **flags)
    assert isinstance(made, Team)
    theirs, ours = (member._client for member in made._members.values())
    assert "localhost" not in str(theirs._sdk.base_url)
    assert "localhost" in str(ours._sdk.base_url)
    theirs.close()
    ours.close()


def test_a_session_of_two_models(project: Path) -> None:
    """Both are asked over HTTP, the rows are one proposer's, and the trials' owners are on disk."""
    steps = ((0.5, 0.4, "optimizer"), (0.4, 0.3, "schedule"), (0.3, 0.2, "data"), (0.2, 0.1, "loss"))
    wanted = [edit(f"LR = {a}", f"LR = {b}", category=kind)["tool"] for a, b, kind in steps]
    with WireServer([tool(one) for one in wanted]) as server:
        session(project, [], model="one,two", base_url=server.base_url, price="1,10", experiments=4)
        asked = [request.body["model"] for request in server.requests]
    assert statuses(project) == ["keep"] * 5
    assert {record.proposer for record in rows(project)[1:]} == {"llm"}
    trials = json.loads((project / ".overnight/t/proposers/llm/team.json").read_text())["trials"]
    assert trials == {str(n): model for n, model in enumerate(asked, 1)}
