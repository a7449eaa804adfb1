"""The LLM proposer over real HTTP: proposals, repairs in the same conversation, and every dollar charged."""

import json
from pathlib import Path

import pytest

from agent.clients import make_client
from agent.clients.base import Client
from agent.clients.pricing import Price
from agent.clients.retry import RetryPolicy
from agent.errors import ProviderOverloaded, ReplyError
from agent.proposers.llm import KEEP, LLM
from agent.rules import RULES
from agent.values import Edit, History, Record
from benchmarks.wire_server import Recorded, WireServer, huge, status, text, tool

SOURCES = {"train.py": "LR = 0.04\nDEPTH = 8\n"}
PAST = History(
    (), None, SOURCES, fixed={"prepare.py": 'def open_feed():\n    """Batches."""\n    return 1\ndef score(): ...\n'}
)
EDIT = {"path": "train.py", "search": "LR = 0.04", "replace": "LR = 0.02"}
CALL = {
    "description": "halve the learning rate",
    "hypothesis": "it is too high",
    "category": "optimizer",
    "edits": [EDIT],
}
TEXT = """description: halve the learning rate
hypothesis: it is too high
category: optimizer

train.py
<<<<<<< SEARCH
LR = 0.04
=======
LR = 0.02
>>>>>>> REPLACE
"""
COST = (1000 + 10 * 100) / 1e6  # of the server's usual usage at 1 and 10 dollars


def client(server: WireServer, model: str = "openai:m") -> Client:
    policy = RetryPolicy(attempts=2, sleep=lambda seconds: None)
    return make_client(model, base_url=server.base_url, api_key="k", price=Price(1.0, 10.0), policy=policy)


def llm(server: WireServer, tmp_path: Path, model: str = "openai:m") -> LLM:
    return LLM(client(server, model), program="the brief", state=tmp_path / "llm")


@pytest.mark.parametrize("model", ["openai:m", "anthropic:m"])
@pytest.mark.parametrize("reply", [tool(CALL, text="I would"), text(TEXT)], ids=["tool", "text"])
def test_a_proposal_with_its_price(tmp_path: Path, model: str, reply: object) -> None:
    with WireServer([reply]) as server:
        proposal = llm(server, tmp_path, model).ask(PAST, ())
        sent = server.requests[0].prompt
    assert proposal.edits == (Edit("train.py", "LR = 0.04", "LR = 0.02"),)
    assert (proposal.description, proposal.category) == ("halve the learning rate", "optimizer")
    assert (proposal.hypothesis, proposal.proposer) == ("it is too high", "llm")
    assert proposal.cost_usd == pytest.approx(COST)
    assert "LR = 0.02" in proposal.reply
    assert all(
        words in sent and words in proposal.prompt for words in ("the brief", "DEPTH = 8", "Batches.", *RULES.values())
    )
    assert "def score" not in sent


@pytest.mark.parametrize("model", ["openai:m", "anthropic:m"])
@pytest.mark.parametrize("first", [tool({**CALL, "edits": []}), text("I have no idea."), text("")])
def test_an_unreadable_reply_is_charged_and_repaired(tmp_path: Path, model: str, first: object) -> None:
    with WireServer([first, tool(CALL)]) as server:
        proposer = llm(server, tmp_path, model)
        with pytest.raises(ReplyError) as caught:
            proposer.ask(PAST, ())
        salvaged = caught.value.proposal
        assert salvaged is not None
        assert (salvaged.edits, salvaged.cost_usd) == ((), pytest.approx(COST))
        mended = proposer.repair(salvaged, str(caught.value))
        conversation = server.requests[1].prompt
    assert mended is not None
    assert (mended.edits, mended.key) == ((Edit("train.py", "LR = 0.04", "LR = 0.02"),), salvaged.key)
    assert mended.cost_usd == pytest.approx(COST)
    assert "DEPTH = 8" in conversation
    assert "cannot be used as it is" in mended.prompt
    assert "DEPTH = 8" not in mended.prompt


def test_two_repairs_grow_one_conversation(tmp_path: Path) -> None:
    def count(request: Recorded) -> object:
        return tool({**CALL, "description": f"{len(request.body['messages'])} messages"})

    with WireServer([count, count, count]) as server:
        proposer = llm(server, tmp_path)
        proposal = proposer.ask(PAST, ())
        for problem in ("no such line", "shapes differ"):
            proposal = proposer.repair(proposal, problem)
            assert proposal is not None
        assert proposal.description == "6 messages"
        assert "no such line" in server.requests[2].prompt
        assert "shapes differ" in server.requests[2].prompt


def test_a_repair_after_a_restart(tmp_path: Path) -> None:
    with WireServer([tool(CALL), tool({**CALL, "description": "mended"})]) as server:
        proposal = llm(server, tmp_path).ask(PAST, ())
        mended = llm(server, tmp_path).repair(proposal, "crashed")
        assert mended is not None
        assert mended.description == "mended"
        assert "halve the learning rate" in server.requests[1].prompt


def test_a_lost_or_spoilt_conversation_is_not_repaired(tmp_path: Path) -> None:
    with WireServer([tool(CALL)]) as server:
        proposer = llm(server, tmp_path)
        proposal = proposer.ask(PAST, ())
        (kept,) = (tmp_path / "llm").glob("conversation-*.json")
        kept.write_text('{"conversation": "{}", "sources": {}}')
        assert proposer.repair(proposal, "crashed") is None
        kept.unlink()
        assert proposer.repair(proposal, "crashed") is None
        assert len(server.requests) == 1


def test_a_truncated_or_huge_reply_is_refused_and_charged(tmp_path: Path) -> None:
    with WireServer([tool(CALL, truncated=True), huge()]) as server:
        proposer = llm(server, tmp_path)
        for cost in (COST, 10 * 20_000 / 1e6):
            with pytest.raises(ReplyError) as caught:
                proposer.ask(PAST, ())
            assert caught.value.proposal is not None
            assert caught.value.proposal.cost_usd >= cost * 0.999


def test_provider_errors_pass_through(tmp_path: Path) -> None:
    with WireServer([status(500), status(500)]) as server, pytest.raises(ProviderOverloaded):
        llm(server, tmp_path).ask(PAST, ())


def test_a_problem_is_fenced_and_bounded(tmp_path: Path) -> None:
    with WireServer([tool(CALL), tool(CALL)]) as server:
        proposer = llm(server, tmp_path)
        mended = proposer.repair(proposer.ask(PAST, ()), "x" * 100_000 + "\x1b[31m the end")
        assert mended is not None
        assert "the end" in mended.prompt
        assert "\x1b" not in mended.prompt
        assert len(mended.prompt) < 9_000


def test_old_conversations_are_dropped(tmp_path: Path) -> None:
    script = tmp_path / "replies.jsonl"
    script.write_text((json.dumps({"tool": CALL}) + "\n") * (KEEP + 5))
    proposer = LLM(make_client(f"scripted:{script}"), program="", state=tmp_path / "llm")
    for _ in range(KEEP + 5):
        proposal = proposer.ask(PAST, ())
        proposer.tell(proposal, Record(None, None, None, "reject", ""))
    assert len(list((tmp_path / "llm").iterdir())) == KEEP
    assert (tmp_path / "llm" / f"conversation-{proposal.key}.json").exists()
