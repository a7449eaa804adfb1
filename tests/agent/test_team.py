"""Several models as one proposer, over real HTTP: who is asked, who mends, and what if one does not answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.clients import make_client
from agent.clients.pricing import Price
from agent.clients.retry import RetryPolicy
from agent.errors import ProviderOverloaded, ProviderRefused, ReplyError, StateError
from agent.proposers.llm import LLM
from agent.proposers.team import Team
from agent.values import History, Proposal, Record
from benchmarks.wire_server import Behaviour, Recorded, WireServer, status, text, tool
from tests.agent.test_llm import CALL, COST, PAST


def team(server: WireServer, state: Path, models: tuple[str, ...] = ("a", "b"), said: list[str] | None = None) -> Team:
    policy = RetryPolicy(attempts=1, sleep=lambda seconds: None)
    members = {
        name: LLM(
            make_client(f"openai:{name}", base_url=server.base_url, api_key="k", price=Price(1.0, 10.0), policy=policy),
            program="",
            state=state / name,
        )
        for name in models
    }
    return Team(members, state=state, seed=42, say=(said if said is not None else []).append)


def name(request: Recorded) -> Behaviour:
    """A proposal that says who makes it."""
    return tool({**CALL, "description": str(request.body["model"])})


def unless(model: str, answer: Behaviour) -> object:
    """`answer` from that model, a proposal from all others."""
    return lambda request: answer if request.body["model"] == model else name(request)


def row(trial: int, status: str = "discard", cost: float = 0.01) -> Record:
    return Record("abcdef0", 1.4, 1.0, status, "x", trial=trial, cost_usd=cost)


def past(count: int) -> History:
    return replace(PAST, records=tuple(row(n) for n in range(count)))


def test_both_are_asked_and_each_keeps_its_name(tmp_path: Path) -> None:
    with WireServer([name] * 20) as server:
        proposer = team(server, tmp_path)
        made = [proposer.ask(past(n), ()) for n in range(20)]
        assert len(server.requests) == 20
    assert {proposal.description for proposal in made} == {"a", "b"}
    assert all(proposal.key.endswith(f" {proposal.description}") for proposal in made)
    assert {proposal.proposer for proposal in made} == {"llm"}


def test_a_resumed_team_chooses_alike(tmp_path: Path) -> None:
    with WireServer([name] * 24) as server:
        first, second = team(server, tmp_path / "1"), None
        for n in range(12):
            second = team(server, tmp_path / "2")
            one, other = first.ask(past(n), ()), second.ask(past(n), ())
            assert one.description == other.description
            for proposer, proposal in ((first, one), (second, other)):
                proposer.tell(proposal, row(n, "keep" if n % 3 else "discard"))


def test_keeps_for_a_dollar_decide_what_is_asked(tmp_path: Path) -> None:
    with WireServer([name] * 140) as server:
        proposer, records, asked = team(server, tmp_path), [], []
        for n in range(70):
            proposal = proposer.ask(replace(PAST, records=tuple(records)), ())
            records.append(row(n, "keep" if proposal.description == "b" and n % 2 else "discard"))
            proposer.tell(proposal, records[-1])
            asked.append(proposal.description)
    assert asked[-40:].count("b") > 25
    assert asked[-40:].count("a") > 0


def test_a_repair_goes_to_the_model_that_proposed(tmp_path: Path) -> None:
    with WireServer([text("no idea"), name, name]) as server:
        proposer = team(server, tmp_path)
        with pytest.raises(ReplyError) as caught:
            proposer.ask(PAST, ())
        bare = caught.value.proposal
        assert bare is not None
        assert bare.cost_usd == pytest.approx(COST)
        mended = team(server, tmp_path).repair(bare, "unreadable")  # also after a restart
        assert mended is not None
        assert mended.key == bare.key
        assert server.requests[1].body["model"] == server.requests[0].body["model"] == mended.description
        assert "no idea" in server.requests[1].prompt
        unknown = replace(mended, key=f"{mended.key.partition(' ')[0]} gone")
        assert proposer.repair(unknown, "crashed") is None


def test_a_refused_model_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    with WireServer([unless("a", status(401))] * 30) as server:
        proposer = team(server, tmp_path, said=said)
        made = [proposer.ask(past(n), ()) for n in range(15)]
        assert [request.body["model"] for request in server.requests].count("a") == 1
    assert {proposal.description for proposal in made} == {"b"}
    assert len(said) == 1
    assert said[0].startswith("a: ")
    assert "check the API key" in said[0]
    assert said[0].endswith("; going on with b")


def test_an_overloaded_model_rests_while_the_others_answer(tmp_path: Path) -> None:
    with WireServer([unless("b", status(503))] * 30) as server:
        proposer = team(server, tmp_path)
        made = [proposer.ask(past(n), ()) for n in range(15)]
        assert [request.body["model"] for request in server.requests].count("b") == 1
    assert {proposal.description for proposal in made} == {"a"}


def test_when_nobody_answers_the_session_is_told(tmp_path: Path) -> None:
    with WireServer([status(401), status(403)]) as server, pytest.raises(ProviderRefused, match="all models were ref"):
        team(server, tmp_path / "1").ask(PAST, ())
    with WireServer([status(401), status(503, retry_after="1000")]) as server:
        with pytest.raises(ProviderOverloaded) as caught:
            team(server, tmp_path / "2").ask(PAST, ())
        assert 990 < caught.value.retry_after <= 1000


def test_a_model_that_stops_answering_in_a_repair_is_charged_and_given_up(tmp_path: Path) -> None:
    with WireServer([name, Behaviour(raw=b"<html>"), name]) as server:
        proposer = team(server, tmp_path)
        proposal = proposer.ask(PAST, ())
        with pytest.raises(ReplyError) as caught:
            proposer.repair(proposal, "no such line")
        assert caught.value.proposal is not None
        assert caught.value.proposal.cost_usd > 0.0, "the page that came instead was billed"
        assert proposer.repair(caught.value.proposal, "no such line") is None
        assert proposer.ask(PAST, ()).description != proposal.description


def test_the_last_one_passes_its_error_on(tmp_path: Path) -> None:
    with WireServer([name, status(503)]) as server:
        proposer = team(server, tmp_path, ("a",))
        proposal = proposer.ask(PAST, ())
        with pytest.raises(ProviderOverloaded):
            proposer.repair(proposal, "no such line")


def test_what_it_costs_is_the_mean(tmp_path: Path) -> None:
    with WireServer([]) as server:
        proposer = team(server, tmp_path)
        assert proposer.expected_usd(PAST) == pytest.approx(LLM.expected_usd(proposer._members["a"], PAST))


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "team.json").write_text("[]")
    with WireServer([]) as server, pytest.raises(StateError, match="move it away"):
        team(server, tmp_path)


def test_trials_of_others_are_nobodys(tmp_path: Path) -> None:
    with WireServer([name] * 2) as server:
        proposer = team(server, tmp_path)
        proposer.tell(Proposal((), "x", key="k a"), replace(row(1), trial=None))
        assert not (tmp_path / "team.json").exists()
