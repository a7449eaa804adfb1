"""CMA-ES over all knobs, and a model that overrides some of it: over real HTTP, killed, and around code that moves."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.clients import make_client
from agent.clients.base import Client
from agent.clients.pricing import Price
from agent.clients.retry import RetryPolicy
from agent.constants import find
from agent.errors import ProviderRefused, ReplyError, StateError
from agent.proposers.centaur import Centaur
from agent.proposers.centaur.centaur import FRACTION, UNREADABLE, WARM_UP, overrides
from agent.proposers.centaur.state import load
from agent.recording import CUT_OFF
from benchmarks.wire_server import WireServer, status, text, tool
from tests.agent.test_knobs import BASELINE, ROOT, SMALL, TINY, TRAIN, applied, changed, history, row, values

SPHERE = "".join(f"X{i} = 0.5  # range: 0.0..1.0\n" for i in range(5))
LOWEST = (0.2, 0.35, 0.8, 0.65, 0.15)
COST = (1000 + 10 * 100) / 1e6  # of the wire server's usual usage at 1 and 10 dollars
FIRST = next(n for n in range(WARM_UP, 99) if overrides(n, WARM_UP))  # the first point that a model may override


def sphere(source: str) -> float:
    now = values(source)
    return 1.0 + sum((float(str(now[f"X{i}"])) - at) ** 2 for i, at in enumerate(LOWEST))


def tried(centaur: Centaur, count: int, source: str = SMALL, measure: Callable[[str], float] | None = None) -> float:
    """Ask and tell so often; the lowest value."""
    best, now = 9.0, dataclasses.replace(BASELINE, val_bpb=measure(source) if measure else 1.4)
    for n in range(count):
        proposal = centaur.ask(history(source, now), ())
        value = measure(applied(source, proposal)) if measure else 1.5 + n % 7 / 10
        best = min(best, value)
        centaur.tell(proposal, dataclasses.replace(row(value), trial=n + 1))
    return best


def client(server: WireServer, model: str = "openai:m") -> Client:
    policy = RetryPolicy(attempts=2, sleep=lambda seconds: None)
    return make_client(model, base_url=server.base_url, api_key="k", price=Price(1.0, 10.0), policy=policy)


def warm(state: Path, server: WireServer, said: list[str] | None = None, model: str = "openai:m") -> Centaur:
    """Next it asks the model."""
    centaur = Centaur(state, "cpu", client=client(server, model), say=(said if said is not None else []).append)
    tried(centaur, FIRST - 1)  # the incumbent is point 0
    return centaur


def call(why: str = "the rate follows the width", **knobs: Any) -> Any:
    return tool({"knobs": knobs, "why": why})


def test_a_proposal_turns_all_knobs_of_the_real_script_within_their_bounds(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu")
    proposal = centaur.ask(history(TRAIN), ())
    new = changed(TRAIN, proposal)
    assert len(new) > 10
    assert (proposal.category, proposal.proposer, proposal.cost_usd) == ("hyperparameter", "centaur", 0.0)
    assert "more" in proposal.description
    ranges = {constant.name: constant.range for constant in find(TRAIN, "cpu")}
    assert {constant.name: constant.range for constant in find(applied(TRAIN, proposal), "cpu")} == ranges
    assert centaur.repair(proposal, "it crashed") is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_converges(tmp_path: Path, seed: int) -> None:
    """On a sphere over five knobs: after 60 results its best is less than half as far as random's median."""
    rng = random.Random(seed)
    distances = [[sum((rng.random() - at) ** 2 for at in LOWEST) for _ in range(60)] for _ in range(99)]
    chance = statistics.median(min(run) for run in distances)
    assert tried(Centaur(tmp_path, "cpu", seed=seed), 60, SPHERE, sphere) - 1.0 < chance / 2


def test_where_more_is_better_it_climbs(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu", direction="max")
    now = dataclasses.replace(BASELINE, val_bpb=-sphere(SPHERE))
    for _ in range(40):
        proposal = centaur.ask(history(SPHERE, now), ())
        centaur.tell(proposal, row(-sphere(applied(SPHERE, proposal))))
    mean = load(tmp_path / "centaur.json").search().mean
    assert sum((u - at) ** 2 for u, at in zip(mean, LOWEST, strict=True)) < sphere(SPHERE) - 1.0


def test_a_resumed_search_goes_on_with_the_same_suggestion(tmp_path: Path) -> None:
    through, resumed = Centaur(tmp_path / "a", "cpu", seed=7), tmp_path / "b"
    for n in range(20):
        ours, theirs = through.ask(history(SMALL), ()), Centaur(resumed, "cpu", seed=7).ask(history(SMALL), ())
        assert ours == theirs
        through.tell(ours, row(1.4 + n % 5 / 10))
        Centaur(resumed, "cpu", seed=7).tell(theirs, row(1.4 + n % 5 / 10))
    assert load(resumed / "centaur.json").search().generation == 2


def test_a_killed_process_asks_again_what_it_had_asked(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from agent.proposers.centaur import Centaur
from tests.agent.test_knobs import SMALL, history
print(Centaur(pathlib.Path({str(tmp_path)!r}), "cpu").ask(history(SMALL), ()).description, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    again = Centaur(tmp_path, "cpu").ask(history(SMALL), ())
    assert again.description == killed.stdout.strip()
    assert Centaur(tmp_path, "cpu").ask(history(SMALL), (again,)).description != again.description


def test_what_never_ran_is_proposed_again_and_a_failure_is_told(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu")
    first = centaur.ask(history(SMALL), ())
    centaur.tell(first, row(None, "reject", CUT_OFF))
    assert centaur.ask(history(SMALL), ()) == first
    centaur.tell(first, row(None, "crash", "out of memory"))
    second = centaur.ask(history(SMALL), ())
    assert second.key != first.key
    reason = "the same code was tried before: trial 3 (LR 0.04 -> 0.05) ended as discard with val_bpb 1.412300; no"
    centaur.tell(second, row(None, "reject", reason))
    centaur.tell(second, row(1.0))  # told once is enough
    told = load(tmp_path / "centaur.json").told
    assert [answer.value for answer in told] == [1.4, None, 1.4123]


def test_a_search_survives_nothing_but_failures(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu")
    for _ in range(20):
        centaur.tell(centaur.ask(history(SMALL), ()), row(None, "crash", "boom"))
    assert load(tmp_path / "centaur.json").search().generation == 2


def test_every_point_is_tried_once_and_then_it_says_so(tmp_path: Path) -> None:
    centaur, seen = Centaur(tmp_path, "cpu"), {TINY}
    for _ in range(5):  # 2 flags x 3 head counts, less the incumbent
        proposal = centaur.ask(history(TINY), ())
        assert applied(TINY, proposal) not in seen
        seen.add(applied(TINY, proposal))
        centaur.tell(proposal, row(1.41))
    with pytest.raises(ProviderRefused, match="all points tried"):
        centaur.ask(history(TINY), ())
    with pytest.raises(ProviderRefused, match="left to vary"):
        Centaur(tmp_path / "b", "cpu").ask(history("x = 1\nA = 3  # range: fixed\n"), ())


def test_a_broken_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "centaur.json").write_text('{"ranges": {}}')
    with pytest.raises(StateError, match="move it away to start afresh"):
        Centaur(tmp_path, "cpu")


# ── code and knobs together ──────────────────────────────────────────────────────────────────────────────────────────


EDITED = SMALL.replace("LR = 0.04", "LR = 0.05").replace("WIDTH = 64\n", "CLIP = 1.0  # range: 0.1..10.0 log\n")
EDITED += "loss = loss + 1e-4 * penalty\n"


def test_a_code_edit_that_wins_moves_the_origin(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu", seed=3)
    tried(centaur, 20)
    old = load(tmp_path / "centaur.json")
    now = dataclasses.replace(row(1.2, "keep"), trial=21)
    proposal = centaur.ask(history(EDITED, now), ())
    assert values(applied(EDITED, proposal)).keys() == values(EDITED).keys()
    assert "CLIP" in changed(EDITED, proposal)
    assert "penalty" in applied(EDITED, proposal)
    state = load(tmp_path / "centaur.json")
    before, after = state.origins
    assert after.keys == (
        "LR 0.01..0.16, log scale",
        "DEPTH 1..8, whole",
        "CLIP 0.1..10, log scale",
        'KIND "a"|"b"|"c"',
    )
    search = state.search()
    assert search.sigma == before.sigma / 2
    assert search.generation == 0
    learned, kept = old.search().covariance, search.covariance
    assert kept[0, 1] / kept[0, 0] == pytest.approx(learned[0, 1] / learned[0, 0])  # LR and DEPTH
    assert kept[0, 1] != 0.0
    assert kept[2, 0] == 0.0  # of the new knob nothing is known
    mean = dict(zip(("LR", "DEPTH", "CLIP", "KIND"), search.mean, strict=True))
    assert mean["CLIP"] == pytest.approx(0.5)
    assert Centaur(tmp_path, "cpu", seed=3).ask(history(EDITED, now), ()) == proposal  # by replay


def test_after_a_move_it_tunes_around_the_new_values(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu", seed=1)
    tried(centaur, 8, SPHERE, sphere)
    source = SPHERE.replace("X0 = 0.5", "X0 = 0.9") + "x = 1\n"
    now = dataclasses.replace(row(1.0, "keep"), trial=9)
    found = []
    for _ in range(8):
        proposal = centaur.ask(history(source, now), ())
        found.append(float(str(values(applied(source, proposal))["X0"])))
        centaur.tell(proposal, row(1.1))
    assert statistics.mean(found) > 0.75


def test_knobs_that_another_has_turned_are_a_point_not_a_move(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu")
    tried(centaur, 3)
    now = dataclasses.replace(row(1.1, "keep"), trial=4)
    centaur.ask(history(SMALL.replace("LR = 0.04", "LR = 0.1"), now), ())
    state = load(tmp_path / "centaur.json")
    assert len(state.origins) == 1
    assert [asked.by for asked in state.asked].count("incumbent") == 1
    assert state.tells()[-1].foreign
    assert state.tells()[-1].value == 1.1


def test_its_own_keep_is_neither(tmp_path: Path) -> None:
    centaur = Centaur(tmp_path, "cpu")
    proposal = centaur.ask(history(SMALL), ())
    keep = row(1.3, "keep")
    centaur.tell(proposal, keep)
    centaur.ask(history(applied(SMALL, proposal), keep), ())
    state = load(tmp_path / "centaur.json")
    assert (len(state.origins), len(state.told)) == (1, 2)


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_asked_on_its_fraction_after_the_warm_up() -> None:
    turns = [overrides(n, WARM_UP) for n in range(1000)]
    assert sum(turns) == FRACTION * 1000
    assert max(len(run) for run in "".join("x" if turn else " " for turn in turns).split("x")) <= 3
    assert not any(overrides(n, WARM_UP - 1) for n in range(100))


def test_an_override_is_proposed_charged_and_told(tmp_path: Path) -> None:
    with WireServer([call(LR=0.1, KIND="b")]) as server:
        centaur = warm(tmp_path, server)
        assert not server.requests, "not before the warm-up"
        own = Centaur(tmp_path, "cpu").ask(history(SMALL), ())
        proposal = centaur.ask(history(SMALL), ())
        prompt = server.requests[0].prompt
    new = values(applied(SMALL, proposal))
    assert (new["LR"], new["KIND"]) == (0.1, "b")
    rest = {"DEPTH", "WIDTH"}
    assert {name: new[name] for name in rest} == {name: values(applied(SMALL, own))[name] for name in rest}
    assert proposal.hypothesis == "the rate follows the width"
    assert proposal.cost_usd == pytest.approx(COST)
    assert "What CMA-ES suggests" in prompt
    assert "What CMA-ES suggests" in proposal.prompt
    assert '"KIND": "b"' in proposal.reply
    centaur.tell(proposal, row(1.2))
    state = load(tmp_path / "centaur.json")
    assert state.asked[-1].by == "model"
    assert (state.tells()[-1].foreign, state.tells()[-1].value) == (True, 1.2)
    assert state.asked[-1].values["LR"] == "0.1"


def test_an_override_that_changes_nothing_is_cma_es_own(tmp_path: Path) -> None:
    with WireServer([text('I agree: {"knobs": {}, "why": "sound"}')]) as server:
        proposal = warm(tmp_path, server).ask(history(SMALL), ())
    assert load(tmp_path / "centaur.json").asked[-1].by == "CMA-ES"
    assert (proposal.hypothesis, proposal.cost_usd) == ("sound", pytest.approx(COST))


def test_an_unreadable_reply_goes_back_once_and_then_cma_es_stands_in(tmp_path: Path) -> None:
    with WireServer([text("Lower the rate."), call(LR=9.0)]) as server:
        centaur = warm(tmp_path, server)
        own = Centaur(tmp_path, "cpu").ask(history(SMALL), ())
        with pytest.raises(ReplyError, match="expected a JSON object with `knobs`") as caught:
            centaur.ask(history(SMALL), ())
        bare = caught.value.proposal
        assert bare is not None
        assert (bare.edits, bare.description, bare.cost_usd) == ((), UNREADABLE, pytest.approx(COST))
        mended = centaur.repair(bare, str(caught.value))
        assert "Lower the rate." in server.requests[1].prompt
        assert "cannot be used" in server.requests[1].prompt
        assert mended is not None
        assert (mended.edits, mended.cost_usd) == (own.edits, pytest.approx(COST))
        assert centaur.repair(mended, "shapes differ") is None
        assert len(server.requests) == 2


@pytest.mark.parametrize("model", ["openai:m", "anthropic:m"])
def test_an_override_that_fails_its_checks_goes_back_once_and_then_cma_es_stands_in(tmp_path: Path, model: str) -> None:
    with WireServer([call(DEPTH=8), call(DEPTH=7)]) as server:
        centaur = warm(tmp_path, server, model=model)
        own = Centaur(tmp_path, "cpu").ask(history(SMALL), ())
        first = centaur.ask(history(SMALL), ())
        second = centaur.repair(first, "out of memory")
        assert second is not None
        assert values(applied(SMALL, second))["DEPTH"] == 7
        assert "out of memory" in second.prompt
        assert "out of memory" in server.requests[1].prompt
        third = centaur.repair(second, "out of memory again")
        assert third == own
        centaur.tell(third, row(1.3, "crash"))
        assert centaur.repair(third, "it crashed") is None
        assert len(server.requests) == 2
    assert load(tmp_path / "centaur.json").asked[-1].by == "CMA-ES"


def test_a_reply_that_never_became_a_point_is_no_failure_of_the_suggestion(tmp_path: Path) -> None:
    with WireServer([text("?"), call(LR=0.1)]) as server:
        centaur = warm(tmp_path, server)
        with pytest.raises(ReplyError) as caught:
            centaur.ask(history(SMALL), ())
        assert caught.value.proposal is not None
        before = len(load(tmp_path / "centaur.json").told)
        centaur.tell(caught.value.proposal, row(None, "reject", "the money was spent"))
        assert len(load(tmp_path / "centaur.json").told) == before
        assert centaur.ask(history(SMALL), ()).key == caught.value.proposal.key


def test_an_overloaded_provider_costs_the_override_not_the_trial(tmp_path: Path) -> None:
    with WireServer([status(500), status(500), call(LR=0.1)]) as server:
        centaur = warm(tmp_path, server)
        own = Centaur(tmp_path, "cpu").ask(history(SMALL), ())
        proposal = centaur.ask(history(SMALL), ())
        assert proposal.edits == own.edits
        assert proposal.prompt
        centaur.tell(proposal, row(1.6))
        for _ in range(4):
            centaur.tell(centaur.ask(history(SMALL), ()), row(1.6))
        assert len(server.requests) == 3, "it is asked again on its next turn"


def test_a_refused_provider_is_not_asked_again(tmp_path: Path) -> None:
    said: list[str] = []
    with WireServer([status(401)]) as server:
        centaur = warm(tmp_path, server, said)
        for _ in range(8):
            centaur.tell(centaur.ask(history(SMALL), ()), row(1.6))
        assert len(server.requests) == 1
    assert len(said) == 1
    assert "check the API key" in said[0]
    assert "CMA-ES alone" in said[0]


def test_a_resumed_override_is_not_paid_for_twice(tmp_path: Path) -> None:
    with WireServer([call(LR=0.1)]) as server:
        proposal = warm(tmp_path, server).ask(history(SMALL), ())
        again = Centaur(tmp_path, "cpu", client=client(server)).ask(history(SMALL), ())
        assert len(server.requests) == 1
    assert (again.edits, again.cost_usd) == (proposal.edits, 0.0)


def test_what_it_is_expected_to_cost(tmp_path: Path) -> None:
    with WireServer([]) as server:
        past = history(SMALL)
        expected = Centaur(tmp_path, "cpu", client=client(server)).expected_usd(past)
    assert expected is not None
    assert 0.3 * 0.01 < expected < 0.3 * 0.02  # a thousand tokens of an answer cost a cent
    assert Centaur(tmp_path, "cpu").expected_usd(past) is None
    assert not (tmp_path / "centaur.json").exists()


def test_guidance_reaches_the_model(tmp_path: Path) -> None:
    with WireServer([call(LR=0.1)]) as server:
        warm(tmp_path, server).ask(dataclasses.replace(history(SMALL), guidance="keep DEPTH at 4"), ())
        assert "keep DEPTH at 4" in server.requests[0].prompt


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    tried(Centaur(tmp_path, "cpu"), 2)
    facts = json.loads((tmp_path / "centaur.json").read_text())
    assert facts.keys() == {"ranges", "origins", "asked", "told"}
    assert [asked["values"]["KIND"] for asked in facts["asked"][:1]] == ['"a"']
