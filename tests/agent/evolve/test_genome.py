from dataclasses import fields
from typing import Any

import pytest

from agent.proposers.evolve.genome import ACTUATORS, FIELDS, NULLABLE, SENSORS, Policy, told
from train import ACTUATORS as TRAINED_ACTUATORS
from train import SENSORS as TRAINED_SENSORS
from train import MatrixPolicy

LAW = {"poles": (0.5, 1), "bias": 1, "step_fraction": -4}


def test_the_table_is_what_the_trainer_allows() -> None:
    plain = [field for field in fields(MatrixPolicy) if field.metadata]
    assert {field.name: (field.default, field.metadata["allowed"]) for field in plain} == dict(FIELDS)
    assert tuple(field.name for field in plain if "None" in field.type) == NULLABLE
    assert (SENSORS, ACTUATORS) == (TRAINED_SENSORS, TRAINED_ACTUATORS)
    assert {field.name for field in fields(MatrixPolicy)} - set(FIELDS) == {"control", "normalisers"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"ns_steps": 5, "beta2": 0.95, "control": {}}),
        ({"update_multiplier": 0.7}, {"update_multiplier": 0.70001}),
        ({"clip": "update_rms", "ns_steps": 3}, {"ns_steps": 3, "clip": "update_rms"}),
        ({}, {"trust_low": 0.5, "clip_threshold": 2, "ema_beta": 0.5, "sharpness": 2, "normalisers": {"loss_ema": 3}}),
        ({"orthogonalisation": "none"}, {"orthogonalisation": "none", "ns_steps": 2, "orthogonal_mix": 0.5}),
        (
            {"control": {"update_multiplier": LAW}},
            {"update_multiplier": 3, "control": {"update_multiplier": LAW | {"loss_ema": 0, "poles": [0.5, 1.0]}}},
        ),
    ],
)
def test_what_trains_alike_is_one_policy(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert Policy.of(one) == Policy.of(other)
    assert Policy.of(one).id == Policy.of(other).id


def test_other_content_has_another_id() -> None:
    different = [{}, {"ns_steps": 4}, {"beta2": None}, {"clip": "update_rms"}, {"control": {"orthogonal_mix": LAW}}]
    ids = {Policy.of(one).id for one in different}
    assert len(ids) == len(different)
    assert all(len(id) == 12 and int(id, 16) >= 0 for id in ids)


@pytest.mark.parametrize(
    "literal",
    [
        {"ns_steps": 8},
        {"ns_step": 3},
        {"update_multiplier": -1},
        {"placement": "between"},
        {"beta2": "high"},
        {"control": {"trust_mix": {"poles": (0, 1)}}},
        {"control": {"update_multiplier": {"poles": (0, 1, 2)}}},
        {"control": {"update_multiplier": {"poles": (0, 11)}}},
        {"control": {"update_multiplier": LAW | {"weather": 1}}},
        {"control": {"update_multiplier": LAW | {"bias": 9}}},
        {"control": {"update_multiplier": 3}},
        {"control": 3},
        {"normalisers": {"loss_ema": 0}},
        {"normalisers": {"weather": 1}},
    ],
)
def test_what_the_trainer_refuses_is_refused_here(literal: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        MatrixPolicy(**literal)
    with pytest.raises(ValueError, match="expected"):
        Policy.of(literal)


def test_a_change_is_told_with_what_was_there_by_default() -> None:
    after = Policy.of({"ns_steps": 3, "beta2": None})
    assert told(Policy(), after) == "beta2 0.95 -> None, ns_steps 5 -> 3"
    assert told(after, after) == "unchanged"
