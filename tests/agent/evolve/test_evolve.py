"""The proposer by itself: a function stands for the trainer, so that it can be stopped between any two of its steps."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent import patch
from agent.config import PRESETS as NAMES
from agent.config import Settings
from agent.errors import ProviderRefused, StateError, UsageError, Waiting
from agent.proposers.evolve import literal
from agent.proposers.evolve.archive import PRESETS, Preset, Stage, load
from agent.proposers.evolve.breeding import CONTROLS
from agent.proposers.evolve.operators import operators
from agent.proposers.evolve.proposer import Evolve, rise_of, scaled
from agent.values import History, Proposal, Purpose, Record, Status
from corpus.budget import Budget

SOURCE = "LR = 0.1\nMATRIX_POLICY = {}\nDEPTH = 2\n"
SMALL = Preset("small", 2, 4)


def evolve(state: Path, preset: Preset | None = SMALL, seed: int = 42) -> Evolve:
    curve = [{"step": n, "loss": loss, "seconds": n} for n, loss in enumerate((3.0, 2.0, 2.5, 1.0))]
    return Evolve(state, SOURCE, lambda trial: curve, budget="100steps", preset=preset, seed=seed)


def measured(proposal: Proposal, source: str, number: int) -> Record:
    """What a trainer would say: three steps are best, and each seed has luck of its own."""
    policy = literal.read(applied(source, proposal))
    score = 1.0 + 0.02 * abs(policy.get("ns_steps") - 3) + 0.05 * abs(policy.get("update_multiplier") - 1)
    score += (policy.get("orthogonalisation") == "none") + random.Random(proposal.seed or 42).gauss(0, 0.01)
    keep = proposal.budget is None and score < 1.03
    status = Status.KEEP if keep else Status.DISCARD
    where = {"budget": proposal.budget or "100steps", "seed": proposal.seed or 42}
    return Record("abcdef1", round(score, 6), 1.0, status, proposal.description, trial=number, proposer="evolve",
                  tokens_M=1.0, train_seconds=2.0, **where)  # fmt: skip


def applied(source: str, proposal: Proposal) -> str:
    sources = {"train.py": source}
    return patch.apply(sources, proposal.edits, ["train.py"])["train.py"] if proposal.edits else source


def history(source: str = SOURCE, records: Sequence[Record] = ()) -> History:
    baseline = Record("abcdef0", 1.04, 1.0, "keep", "baseline", trial=0)
    return History((baseline, *records), baseline, {"train.py": source})


def play(state: Path, *, lost: int | None = None, anew: bool = False) -> list[Proposal]:
    """To the end. anew: another process after every run. lost: the run whose row was written and never told."""
    proposer, source, records, asked = evolve(state), SOURCE, list[Record](), list[Proposal]()
    while True:
        try:
            proposal = proposer.ask(history(source, records), ())
        except ProviderRefused:
            return asked
        asked.append(proposal)
        records.append(measured(proposal, source, len(asked)))
        source = applied(source, proposal) if records[-1].status == Status.KEEP else source
        if len(asked) != lost:
            proposer.tell(proposal, records[-1])
        if anew or len(asked) == lost:
            proposer = evolve(state, None)


def test_a_whole_evolution_screens_promotes_and_tries(tmp_path: Path) -> None:
    asked = play(tmp_path)
    archive = load(tmp_path)
    assert archive is not None
    stages = [one.run.stage for one in archive.results]
    first = archive.generations[0]
    assert stages[:7] == [Stage.SCREEN] * 7  # the reference, four children, two that are bad on purpose
    assert {proposal.budget for proposal in asked} == {"25steps", "50steps", None}
    assert all((one.seed is None) == (one.budget is None) for one in asked)
    assert all((one.purpose is Purpose.CONFIRM) == (one.budget == "50steps") for one in asked)
    assert len({one.seed for one in asked[:7]}) == 1
    assert asked[0].edits == ()
    assert set(first.members[-2:]) == {policy.id for policy in CONTROLS.values()}
    assert len(archive.generations) == 2
    assert sum(one.applied for one in operators(archive)) == len(archive.individuals) - 3
    assert len({proposal.key for proposal in asked}) == len(asked)


def test_killed_after_any_run_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    asked = play(tmp_path / "whole")
    assert play(tmp_path / "anew", anew=True) == asked
    for lost in range(1, len(asked) + 1, 3):
        assert play(tmp_path / str(lost), lost=lost) == asked
        assert load(tmp_path / str(lost)) == load(tmp_path / "whole")


def test_an_ask_that_was_never_run_is_asked_again(tmp_path: Path) -> None:
    first = evolve(tmp_path).ask(history(), ())
    assert evolve(tmp_path).ask(history(), ()) == first


def test_a_stage_flies_as_one_and_the_next_waits_for_it(tmp_path: Path) -> None:
    proposer, flying = evolve(tmp_path), list[Proposal]()
    for _ in range(7):
        flying.append(proposer.ask(history(), flying))
    assert len({one.key for one in flying}) == 7
    with pytest.raises(Waiting, match="waits for its runs in flight"):
        proposer.ask(history(), flying)
    for number, one in enumerate(flying[:-1], 1):
        proposer.tell(one, measured(one, SOURCE, number))
    with pytest.raises(Waiting):
        proposer.ask(history(), flying[-1:])
    proposer.tell(flying[-1], measured(flying[-1], SOURCE, 7))
    assert proposer.ask(history(), ()).budget == "50steps"


def test_other_seeds_breed_others(tmp_path: Path) -> None:
    members = []
    for seed in (1, 2, 1):
        proposer = evolve(tmp_path / f"{len(members)}", seed=seed)
        proposer.ask(history(), ())
        members.append(proposer.archive.generations[0].members)
    assert members[0] == members[2] != members[1]


def test_failures_are_answers(tmp_path: Path) -> None:
    proposer = evolve(tmp_path)
    for status in (Status.CRASH, Status.REJECT, Status.DISCARD):
        proposal = proposer.ask(history(), ())
        record = replace(measured(proposal, SOURCE, 1), status=status)
        assert proposer.repair(proposal, "it crashed") is None
        proposer.tell(proposal, record)
        proposer.tell(proposal, record)  # told twice, known once
    assert [one.score is None for one in proposer.archive.results] == [True, True, False]
    assert [one.rise for one in proposer.archive.results] == [None, None, 0.5]
    assert proposer.archive.results[2].speed == 5e5


def test_beside_new_code_a_generation_begins_anew(tmp_path: Path) -> None:
    proposer = evolve(tmp_path)
    first = proposer.ask(history(), ())
    proposer.tell(first, measured(first, SOURCE, 1))
    assert proposer.ask(history(), ()).edits != ()
    again = proposer.ask(history(SOURCE.replace("DEPTH = 2", "DEPTH = 3")), ())
    assert (again.edits, again.description, again.seed) == (first.edits, first.description, first.seed)
    changed = proposer.ask(history(SOURCE.replace("{}", '{"ns_steps": 1}')), ())
    assert changed.edits == ()
    assert proposer.archive.individuals[json.loads(changed.key)["id"]].policy.get("ns_steps") == 1


def test_the_preset_is_the_one_it_began_with(tmp_path: Path) -> None:
    evolve(tmp_path, PRESETS["aggressive"])
    assert evolve(tmp_path, None).archive.preset.size == 16
    with pytest.raises(UsageError, match="runs with aggressive, found conservative; use another --tag"):
        evolve(tmp_path, PRESETS["conservative"])
    assert evolve(tmp_path / "new", None).archive.preset == Preset("conservative", 5, 8)


def test_there_are_two_presets() -> None:
    assert tuple(PRESETS) == NAMES
    with pytest.raises(UsageError, match="preset: expected one of conservative, aggressive, found 'bold'"):
        Settings(preset="bold")


def test_what_is_left_is_estimated(tmp_path: Path) -> None:
    proposer = evolve(tmp_path, PRESETS["conservative"])
    hours = (47 * (0.25 * 3600 + 36) + 45 * (0.5 * 3600 + 36)) / 3600
    told = proposer.estimate(3600.0, 36.0)
    assert f"47 screens and 45 promotion runs left, about {hours:.1f} hours, and 10 trials at most" in told
    proposal = proposer.ask(history(), ())
    proposer.tell(proposal, measured(proposal, SOURCE, 1))
    assert "46 screens" in proposer.estimate(1.0, 1.0)


def test_without_a_policy_there_is_nothing_to_evolve(tmp_path: Path) -> None:
    bare = "LR = 0.1\n"
    with pytest.raises(UsageError, match=r"evolve: train.py: expected one line MATRIX_POLICY.*; write MATRIX_POLICY"):
        Evolve(tmp_path, bare, lambda trial: [], budget="100steps")
    with pytest.raises(ProviderRefused, match="MATRIX_POLICY"):
        evolve(tmp_path).ask(history(bare), ())


def test_an_archive_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "archive.json").write_text("{")
    with pytest.raises(StateError, match=r"archive.json: expected an archive of evolve, found: "):
        evolve(tmp_path)


@pytest.mark.parametrize(
    ("budget", "share", "text"),
    [
        ("300s", 0.25, "75s"),
        ("2e13flop", 0.25, "5e+12flop"),
        ("50Mtok", 0.5, "2.5e+07tok"),
        ("30steps", 0.25, "7.5steps"),
    ],
)
def test_a_share_of_a_budget_is_a_budget(budget: str, share: float, text: str) -> None:
    whole = Budget.parse(budget)
    assert scaled(whole, share) == text
    assert Budget.parse(text) == Budget(whole.amount * share, whole.unit)


def test_how_far_a_loss_rises() -> None:
    rows = [{"loss": loss} for loss in (3.0, 2.0, float("nan"), 2.75, 1.0, 1.5)]
    assert rise_of(rows) == 0.75
    assert rise_of([{"loss": 3.0}]) == 0.0
    assert rise_of([]) is None
    assert rise_of([{"loss": float("nan")}]) is None
