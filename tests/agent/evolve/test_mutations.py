import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.proposers.evolve.genome import Policy, leaves
from agent.proposers.evolve.mutations import MUTATIONS, crossover, mutate
from train import MatrixPolicy

LAW = {"poles": (0.5, 1.0), "bias": 1.0, "loss_ema": -2.0}
RICH = Policy.of(
    {
        "ns_steps": 3,
        "trust": "layerwise",
        "trust_low": 0.2,
        "clip": "update_rms",
        "clip_threshold": 0.8,
        "control": {"update_multiplier": LAW},
        "normalisers": {"loss_ema": 5.0},
        "ema_beta": 0.95,
    }
)
# What each may touch: dotted paths, of which a law's own begin with the actuator.
TOUCHES = {
    "momentum placement": {"placement"},
    "trust ratio": {"trust"},
    "trust clamps": {"trust_low", "trust_high"},
    "clip policy": {"clip", "clip_threshold"},
    "decay mode": {"decay"},
    "update multiplier": {"update_multiplier"},
    "ns_steps": {"ns_steps"},
    "second-moment beta2": {"beta2"},
    "gate bias": {"control.update_multiplier.bias"},
    "sensor EMA": {"ema_beta"},
    "actuator pole": {"control.update_multiplier.poles"},
}
PLAIN = {"trust clamps", "gate bias", "gate weight", "sensor EMA", "actuator pole"}  # nothing of it in plain Muon


def changed(before: Policy, after: Policy) -> set[str]:
    old, new = dict(leaves(before.fields)), dict(leaves(after.fields))
    return {name for name in old | new if old.get(name, "off") != new.get(name, "off")}


def test_there_are_thirteen() -> None:
    assert len(MUTATIONS) == 13


@pytest.mark.parametrize("name", TOUCHES)
def test_each_changes_one_thing(name: str) -> None:
    made = [MUTATIONS[name](policy, random.Random(seed)) for policy in (Policy(), RICH) for seed in range(30)]
    touched = [changed(RICH, one) for one in made[30:] if one is not None]
    if name == "update multiplier":  # under control in RICH: its plain field trains nothing
        assert touched == []
        touched = [changed(Policy(), one) for one in made[:30] if one is not None]
    assert len(touched) > 10
    for paths in touched:
        along = paths & {"trust_low", "clip_threshold"} if paths & {"trust", "clip"} else set()  # with what goes off
        assert len(paths - along) == 1
        assert paths - along <= TOUCHES[name]
    assert (set(made[:30]) == {None}) == (name in PLAIN)


def test_control_goes_on_with_one_law_and_off_with_all() -> None:
    for seed in range(30):
        on = MUTATIONS["stateful control"](Policy(), random.Random(seed))
        off = MUTATIONS["stateful control"](RICH, random.Random(seed))
        assert on is not None
        assert off is not None
        assert len(on.control) == 1
        assert off.control == {}
        assert changed(RICH, off) - {"ema_beta", "normalisers.loss_ema"} == {
            f"control.update_multiplier.{name}" for name in LAW
        }


def test_a_gate_weight_is_one_sensor_with_its_scale() -> None:
    sensors = set()
    for seed in range(60):
        made = MUTATIONS["gate weight"](RICH, random.Random(seed))
        assert made is not None
        names = {path.split(".")[-1] for path in changed(RICH, made)}
        assert len(names) == 1
        sensors |= names
    assert "loss_ema" in sensors
    assert len(sensors) > 3


def test_no_ops_are_refused() -> None:
    assert MUTATIONS["ns_steps"](Policy.of({"orthogonalisation": "none"}), random.Random(0)) is None
    assert MUTATIONS["trust clamps"](Policy(), random.Random(0)) is None
    assert MUTATIONS["sensor EMA"](Policy(), random.Random(0)) is None
    controlled = Policy.of({"trust": "layerwise", "control": {"trust_mix": {"poles": (0, 1)}}})
    assert MUTATIONS["trust ratio"](controlled, random.Random(0)) is None, "its law would steer what is off"
    assert crossover(RICH, RICH, random.Random(0)) is None


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 12))
def test_the_trainer_takes_whatever_a_chain_of_them_makes(seed: int, length: int) -> None:
    rng = random.Random(seed)
    line = [Policy()]
    for _ in range(length):
        name, policy = mutate(line[-1], rng)
        assert name in MUTATIONS
        assert policy != line[-1]
        line.append(policy)
        assert Policy.of(policy.fields) == policy, "the canonical form is its own"
        MatrixPolicy(**policy.fields)
    child = crossover(line[-1], line[len(line) // 2], rng)
    if child is not None:
        assert child not in (line[-1], line[len(line) // 2])
        MatrixPolicy(**child.fields)


def test_the_same_generator_draws_the_same() -> None:
    for seed in range(20):
        assert mutate(RICH, random.Random(seed)) == mutate(RICH, random.Random(seed))
    assert len({mutate(RICH, random.Random(seed))[1] for seed in range(20)}) > 10


def test_a_crossover_has_each_field_of_one_of_the_two() -> None:
    other = Policy.of({"ns_steps": 2, "decay": "none", "beta2": 0.9})
    made = {child for seed in range(30) if (child := crossover(RICH, other, random.Random(seed)))}
    assert len(made) > 10
    for child in made:
        for name in ("ns_steps", "decay", "beta2", "clip", "trust"):
            assert child.get(name) in (RICH.get(name), other.get(name))
