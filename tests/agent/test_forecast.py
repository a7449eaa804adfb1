"""The line a person reads before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from agent.cell import Cell
from agent.clients import make_client
from agent.clients.base import estimate
from agent.clients.pricing import Price
from agent.config import Task
from agent.forecast import forecast
from agent.machine import Machine
from agent.proposers.command import Command
from agent.proposers.evolve.proposer import Evolve
from agent.proposers.llm import LLM, USUAL_ANSWER
from agent.proposers.opening import opening
from agent.recording import Origin
from agent.smoke import Pace
from agent.stops import Stop
from agent.trial import Bench
from agent.values import History, Proposer
from sandbox.isolation import Isolation, Level

CPU = Machine("cpu", "a CPU", "2.13.0", 16.0, "3.11", 100.0)
GPU = Machine("cuda", "a GPU", "2.13.0", 80.0, "3.11", 100.0)
BASELINE_RAN = Pace(smoke=5.0, train=345.0, score=10.0)  # 360 s in all, ten an hour
PAST = History((), None, {"train.py": "LR = 0.04\n"})


def said(
    budget: str,
    *,
    stop: Stop | None = None,
    pace: Pace | None = None,
    machine: Machine = CPU,
    done: int = 0,
    proposers: tuple[Proposer, ...] = (),
) -> str:
    bench = Bench(Task(), {}, Cell(None, machine, Isolation(Level.PROCESS)), pace or Pace())
    origin = Origin(budget, machine.hardware, machine.torch, "")
    return forecast(origin, bench, stop or Stop(), done, proposers, PAST)


@contextmanager
def llm(folder: Path, price: Price) -> Iterator[LLM]:
    client = make_client("openai:m", base_url="http://localhost:1/v1", api_key="k", price=price)
    yield LLM(client, program="the brief", state=folder)
    client.close()


@pytest.mark.parametrize(
    ("budget", "machine", "hours"),
    [
        ("340s", CPU, "about 1.0 hours"),
        ("340s", GPU, "about 1.0 hours"),
        ("1.02e13flop", CPU, "about 1.0 hours"),  # 340 s at three tenths of 100 GFLOP/s
        ("1.02e13flop", GPU, "hours known after the baseline"),
        ("50Mtok", CPU, "hours known after the baseline"),
        ("1000steps", CPU, "hours known after the baseline"),
    ],
)
def test_hours_before_the_baseline_are_what_the_budget_tells(budget: str, machine: Machine, hours: str) -> None:
    assert said(budget, stop=Stop(10), machine=machine) == f"expected: 10 trials, {hours}, $0"


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("budget", ["7s", "1e20flop", "50Mtok", "1000steps"])
def test_hours_after_the_baseline_are_what_it_took(budget: str, machine: Machine) -> None:
    found = said(budget, stop=Stop(25), pace=BASELINE_RAN, machine=machine)
    assert found == "expected: 25 trials, about 2.5 hours, $0"


def test_what_a_session_already_has_is_not_expected_again() -> None:
    stop = Stop(25)
    assert "15 trials, about 1.5 hours" in said("10steps", stop=stop, pace=BASELINE_RAN, done=10)
    assert "0 trials, about 0.0 hours" in said("10steps", stop=stop, pace=BASELINE_RAN, done=30)


def test_without_a_number_of_trials_it_is_a_rate() -> None:
    assert said("340s") == "expected: trials until something stops it, about 10 an hour, $0"
    assert said("9steps", pace=BASELINE_RAN) == "expected: trials until something stops it, about 10 an hour, $0"
    assert "it, hours known after the baseline, $0" in said("10steps")


def test_a_time_is_named() -> None:
    stop = Stop(10, until=datetime(2026, 11, 22, 7, 0))
    assert "about 1.0 hours, until 07:00 at the latest, $0" in said("340s", stop=stop)
    assert "after the baseline, until 07:00 at the latest, $0" in said("10steps", stop=stop)


def test_dollars_are_of_this_prompt_and_an_ordinary_answer(tmp_path: Path) -> None:
    tokens = estimate(opening(PAST, "the brief", ()), "").input_tokens
    each = (2 * tokens + 10 * USUAL_ANSWER) / 1e6
    assert each > 0.03
    with llm(tmp_path, Price(2.0, 10.0)) as proposer:
        alone, counted = (said("340s", stop=stop, proposers=(proposer,)) for stop in (Stop(), Stop(10)))
        capped = said("340s", stop=Stop(10, max_usd=0.5), proposers=(proposer,))
    assert alone.endswith(f"an hour, about ${each:.4f} a proposal")
    assert counted.endswith(f"about ${each:.4f} a proposal, ${10 * each:.2f} in all")
    assert capped.endswith(f"${10 * each:.2f} in all, none asked for after $0.50")


def test_a_model_of_ones_own_costs_nothing(tmp_path: Path) -> None:
    with llm(tmp_path, Price(0.0, 0.0)) as proposer:
        assert said("340s", stop=Stop(3), proposers=(proposer,)).endswith("about $0.0000 a proposal, $0.00 in all")


def test_what_a_command_costs_nobody_knows(tmp_path: Path) -> None:
    command = Command("claude -p", program="")
    with llm(tmp_path, Price(2.0, 10.0)) as proposer:
        found = said("340s", stop=Stop(3, max_usd=1.0), proposers=(proposer, command))
    assert found.endswith("dollars unknown (the command's own account), none asked for after $1.00")


def test_an_evolution_says_how_many_runs_and_hours_it_takes(tmp_path: Path) -> None:
    evolve = Evolve(tmp_path, "MATRIX_POLICY = {}\n", lambda trial: [], budget="1000steps")
    assert said("1000steps", proposers=(evolve,)).endswith("$0; evolve: hours known after the baseline")
    hours = (47 * (345 / 4 + 15) + 45 * (345 / 2 + 15)) / 3600
    found = said("1000steps", proposers=(evolve,), pace=BASELINE_RAN)
    assert (
        f"; evolve conservative (5 generations x 8): 47 screens and 45 promotion runs left, about {hours:.1f} hours"
        in found
    )
