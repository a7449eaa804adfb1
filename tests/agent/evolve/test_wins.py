from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from agent.proposers.evolve.archive import BAD, INCUMBENT, Archive, Generation, Individual, Preset, Result, Stage
from agent.proposers.evolve.genome import Policy
from agent.proposers.evolve.lineage import as_text
from agent.proposers.evolve.operators import operators
from agent.proposers.evolve.tournament import runs
from agent.proposers.evolve.wins import champion, gates, wins
from train import MatrixPolicy, torch

REFERENCE = Individual(Policy(), INCUMBENT, 0)
CHILD = Individual(Policy.of({"ns_steps": 3}), "ns_steps", 0, (REFERENCE.id,), "ns_steps 5 -> 3")
OTHER = Individual(Policy.of({"decay": "none"}), "decay mode", 0, (REFERENCE.id,), "decay cautious -> none")
WRONG = Individual(Policy.of({"update_multiplier": 10.0}), BAD, 0, change="update multiplier 10")
MIXED = Individual(Policy.of({"ns_steps": 3, "decay": "none"}), "crossover", 0, (CHILD.id, OTHER.id), "decay none")
SCORES = {REFERENCE.id: 1.0, CHILD.id: 0.9, OTHER.id: 0.98, WRONG.id: None}
PEOPLE = (REFERENCE, CHILD, OTHER, WRONG, MIXED)
PHASE = {"poles": (0.5, 1.0), "bias": 1.0}


def archive() -> Archive:
    """A generation that is over: the child was kept, what is bad on purpose crashed."""
    ids = tuple(one.id for one in (CHILD, OTHER, WRONG))
    generation = Generation(0, "base", REFERENCE.id, ids, (CHILD.id, OTHER.id), (CHILD.id,))
    found = Archive(Preset("small", 2, 2), 7).joined(PEOPLE).begun(generation)
    for number, run in enumerate(runs(found, generation), 1):
        status = "keep" if run.stage is Stage.TRIAL else "crash" if SCORES[run.id] is None else "discard"
        found = found.told(Result(run, number, status, SCORES[run.id]))
    return found


def curve(trial: int) -> Sequence[Mapping[str, Any]]:
    """Odd trials are twice as fast in steps."""
    losses = (4.0, 2.0, 1.0) if trial % 2 == 0 else (4.0, 3.0, 2.0)
    return [{"step": 10 * n, "loss": loss, "seconds": 1.0 * n} for n, loss in enumerate(losses)]


def test_every_claim_has_figures() -> None:
    found = archive()
    facts = wins(found, curve)
    assert facts["1 separates good from bad"] == [{"policy": "update multiplier 10", "rank": 4, "of": 4, "score": None}]
    assert facts["2 gate follows the phase"] == "no law in the best policy"
    reached = facts["3 beats the baseline"]
    assert len(reached) == 3
    trials = {(one.run.id, one.run.seed): one.trial or 0 for one in found.results}
    for fact in reached:
        ours, theirs = (curve(trials[id, fact["seed"]]) for id in (CHILD.id, REFERENCE.id))
        assert fact["loss"] == theirs[-1]["loss"]
        step = next((row["step"] for row in ours if row["loss"] <= fact["loss"]), None)
        assert fact["steps"] == (step, 20)
        assert fact["seconds"] == (None if step is None else step / 10, 2.0)
    held = facts["4 holds elsewhere"]
    assert (held["id"], held["screen"]["gain"], held["promotion"]["gains"]) == (CHILD.id, 0.1, [0.1] * 3)
    assert held["promotion"]["seeds better"] == "3 of 3"
    assert held["trial"].endswith(": keep, 0.9")
    assert facts["5 larger models"].startswith("not measured")


def test_what_was_not_measured_says_so() -> None:
    empty = Archive(Preset("small", 2, 2), 7)
    assert champion(empty) is None
    assert all(str(fact).startswith("not measured") for fact in wins(empty, curve).values())
    assert str(wins(archive(), lambda trial: [])["3 beats the baseline"]) == "not measured: no curves"


@pytest.mark.parametrize(("weight", "sign"), [(-8.0, -1), (2.0, 1)])
def test_a_gate_on_the_phase_is_what_the_trainer_makes_of_it(weight: float, sign: int) -> None:
    policy = Policy.of({"control": {"update_multiplier": PHASE | {"step_fraction": weight}}})
    found = gates(policy)["update_multiplier"]
    phases = [n / 10 for n in range(11)]
    sensors = torch.zeros(11, 6)
    sensors[:, 5] = torch.tensor(phases)
    acted = MatrixPolicy(**policy.fields).actuate(sensors)["update_multiplier"].flatten()
    assert found == pytest.approx(float(torch.corrcoef(torch.stack((sensors[:, 5], acted)))[0, 1]), abs=1e-3)
    assert found * sign > 0.8


def test_other_gates_are_not_guessed_at() -> None:
    laws = {"update_multiplier": PHASE | {"loss_ema": 1.0}, "beta2": {"poles": (0.9, 0.99), "bias": 1.0}}
    found = gates(Policy.of({"control": laws}))
    assert all(str(one).startswith("not measured: it reads sensors") for one in found.values())
    flat = Policy.of({"control": {"update_multiplier": PHASE | {"step_fraction": 1.0}}, "sharpness": 0.0})
    assert gates(flat) == {"update_multiplier": "constant"}


def test_operators_are_counted() -> None:
    table = {one.name: one for one in operators(archive())}
    child, other = table["ns_steps"], table["decay mode"]
    assert (child.applied, child.promoted, child.survived, child.won, child.mean, child.best) == (1, 1, 1, 1, 0.1, 0.1)
    assert (other.applied, other.promoted, other.survived, other.won, other.best) == (1, 1, 0, 0, 0.02)
    assert (table["crossover"].applied, table["crossover"].mean) == (0, None)
    assert len(table) == 14


def test_the_page_is_a_tree() -> None:
    found = archive()
    lines = as_text(found, wins(found, curve)).splitlines()
    places = {one.id: next(line for line in lines if line.strip().startswith(one.id)) for one in PEOPLE}
    assert {id: len(line) - len(line.lstrip()) for id, line in places.items()} == {
        REFERENCE.id: 0, CHILD.id: 2, OTHER.id: 2, WRONG.id: 0, MIXED.id: 4
    }  # fmt: skip
    assert places[MIXED.id].endswith(f"crossover: decay none and {OTHER.id}")
    assert places[WRONG.id].endswith("[screen - (n=0) (1 failed)]")
    assert places[CHILD.id].endswith("[screen 0.900000 (n=1); promotion 0.900000 (n=3); trial 0.900000 (n=1), kept]")


def test_an_archive_comes_back_from_its_json() -> None:
    assert Archive.of(archive().facts()) == archive()
