"""Every attack is stopped, and by what it says; every honest candidate that looks like one passes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from agent.cell import Cell
from agent.config import Task
from agent.machine import probe
from agent.smoke import Pace
from agent.trial import Bench
from sandbox.bwrap import SYSTEM
from sandbox.isolation import Isolation, Level, detect
from sandbox.library import compiled
from tests.attacks import escape, forgeries, honest, metric, words
from tests.attacks.world import text_data

bwrap = pytest.mark.skipif(detect().level is not Level.BWRAP, reason=f"needs bubblewrap: {detect().why}")


@pytest.fixture(scope="session")
def world() -> Iterator[escape.Outside]:
    with escape.outside() as made:
        yield made


def some_slow(names: Iterable[str], slow: Container[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


BOMBS = {"many small files", "memory bomb of files"}  # they take ten seconds
BARE = [name for name, program in escape.PROGRAMS.items() if program.bare() != "harm"]


@bwrap
@pytest.mark.parametrize("name", some_slow(escape.PROGRAMS, BOMBS))
def test_nothing_gets_out(name: str, world: escape.Outside, tmp_path: Path) -> None:
    if why := escape.untried(name, Level.BWRAP):
        pytest.skip(why)
    assert escape.attempt(name, detect(), world, tmp_path / "attack") == "sandbox (bwrap)"


@pytest.mark.parametrize("name", some_slow(BARE, BOMBS))
def test_without_the_sandbox_it_would(name: str, world: escape.Outside, tmp_path: Path) -> None:
    if why := escape.untried(name, Level.PROCESS):
        pytest.skip(why)
    found = escape.attempt(name, Isolation(Level.PROCESS), world, tmp_path / "attack")
    assert found == escape.expected(name, Level.PROCESS)


REFUSED = "REACHED\n\nREFUSED EPERM\n"


@pytest.mark.parametrize(
    ("ending", "log", "found"),
    [
        ("exited", REFUSED, "sandbox"),
        ("exited", "REACHED\n\nSURVIVED\n", ""),
        ("exited", "", "WRONG"),
        ("exited", "\nREFUSED EPERM\n", "WRONG"),  # on the way to the wall
        ("exited", "\nSURVIVED\n", "WRONG"),
        ("exited", "REACHED\n\nREFUSED ENOENT\n", "WRONG"),  # no answer of this wall
        ("exited", "REACHED\nTraceback …\nNameError: name 'libc' is not defined\n", "WRONG"),
        ("timed_out", "REACHED\n", "WRONG"),
        ("out_of_memory", REFUSED, "WRONG"),
    ],
)
def test_a_program_that_fails_by_itself_is_not_credited_to_the_wall(ending: str, log: str, found: str) -> None:
    ptrace = escape.PROGRAMS["ptrace a child"]
    assert escape.verdict(ptrace, ending, log, Level.BWRAP).partition(" ")[0].rstrip(":") == found


@bwrap
@pytest.mark.parametrize("name", ["read ~/.ssh", "read ~/.config"])
def test_a_sandbox_that_shows_too_much_is_found_out(
    name: str, world: escape.Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.bwrap.SYSTEM", (*SYSTEM, "/var"))
    assert escape.attempt(name, detect(), world, tmp_path / "attack") == ""


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with text_data() as data:
        yield _bench(data, tmp_path_factory)


def _bench(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    fixed = {"prepare.py": (metric.ROOT / "prepare.py").read_text()}
    isolation = detect()
    if isolation.level is Level.BWRAP:
        isolation = replace(isolation, library=compiled(tmp_path_factory.mktemp("bytecode")))
    return Bench(Task(), fixed, Cell(data, probe(), isolation), Pace(5, 60, 2, 0.0))


@pytest.fixture(scope="session")
def unharmed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> float:
    value, why = metric.attempt(bench, (), tmp_path_factory.mktemp("honest"))
    assert value is not None, why
    return value


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> words.Night:
    return words.night(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("name", words.ATTACKS)
def test_words_stay_words(name: str, night: words.Night) -> None:
    assert words.outcome(name, night) == words.ATTACKS[name].where


NEED_BWRAP = {name for name, attack in forgeries.ATTACKS.items() if attack.stopped_by == "sandbox"}
SLOW = {name for name, attack in forgeries.ATTACKS.items() if attack.slow}


@pytest.mark.parametrize("name", some_slow(forgeries.ATTACKS, SLOW))
def test_no_number_is_forged(name: str, bench: Bench, unharmed: float, tmp_path: Path) -> None:
    attack = forgeries.ATTACKS[name]
    if name in NEED_BWRAP and bench.cell.isolation.level is not Level.BWRAP:
        pytest.skip("what this one looks for is there at level process")
    if attack.stopped_by == "preflight":
        assert metric.refused(attack.edits)
        return
    value, why = metric.attempt(bench, attack.edits, tmp_path, attack.budget)
    outcome = metric.outcome(value, why, unharmed)
    assert outcome.startswith(attack.stopped_by)
    if attack.stopped_by == "audit":
        assert "when it could not look ahead" in outcome


@pytest.mark.parametrize("name", some_slow(honest.HONEST, honest.SLOW))
def test_an_honest_candidate_passes(name: str, bench: Bench, tmp_path: Path) -> None:
    value, why = metric.attempt(bench, honest.HONEST[name], tmp_path)
    assert value is not None, why


@pytest.mark.slow
@pytest.mark.parametrize("name", honest.SOME)
def test_an_honest_edit_of_train_py_passes(name: str, bench: Bench, tmp_path: Path) -> None:
    value, why = metric.attempt(bench, honest.of_train_py()[name], tmp_path, honest.BUDGET, honest.TRAIN)
    assert value is not None, why
