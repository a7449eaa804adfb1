"""Every attack is stopped, and by what it says; every honest candidate that looks like one passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from agent.cell import Cell
from agent.config import Task
from agent.machine import probe
from agent.trial import Bench, Pace
from sandbox.isolation import Isolation, Level, detect
from tests.attacks import escape, metric
from tests.attacks.world import text_data

bwrap = pytest.mark.skipif(detect().level is not Level.BWRAP, reason=f"needs bubblewrap: {detect().why}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[escape.Outside]:
    with escape.outside(tmp_path_factory.mktemp("outside")) as made:
        yield made


@bwrap
@pytest.mark.parametrize("name", escape.PROGRAMS)
def test_nothing_gets_out(name: str, world: escape.Outside, tmp_path: Path) -> None:
    assert escape.attempt(name, detect(), world, tmp_path / "attack") == "sandbox (bwrap)"


@pytest.mark.parametrize("name", escape.CONTROLS)
def test_without_the_sandbox_it_would(name: str, world: escape.Outside, tmp_path: Path) -> None:
    assert escape.attempt(name, Isolation(Level.PROCESS), world, tmp_path / "attack") == ""


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    data = text_data(tmp_path_factory.mktemp("data"))
    fixed = {"prepare.py": (metric.ROOT / "prepare.py").read_text()}
    return Bench(Task(), fixed, Cell(data, probe(), detect()), Pace(5, 20, 2))


@pytest.fixture(scope="session")
def honest(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> float:
    value, why = metric.attempt(bench, (), tmp_path_factory.mktemp("honest"))
    assert value is not None, why
    return value


def some_slow(names: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in metric.SLOW else []) for name in names]


@pytest.mark.parametrize("name", some_slow(metric.ATTACKS))
def test_no_number_is_forged(name: str, bench: Bench, honest: float, tmp_path: Path) -> None:
    attack = metric.ATTACKS[name]
    value, why = metric.attempt(bench, attack.edits, tmp_path, "1e9flop" if attack.stopped_by == "FLOPs" else "20steps")
    if attack.stopped_by == "unmoved":
        assert value == honest, why
    else:
        assert value is None
        assert why.startswith(attack.stopped_by)


@pytest.mark.parametrize("name", some_slow(metric.HONEST))
def test_an_honest_candidate_passes(name: str, bench: Bench, tmp_path: Path) -> None:
    value, why = metric.attempt(bench, metric.HONEST[name], tmp_path)
    assert value is not None, why
