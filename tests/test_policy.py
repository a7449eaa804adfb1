"""The policy of Muon: its bounds, its sensors and actuators by hand, and that the default is plain Muon."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from tests.test_optimizers import MUON, by_shape, parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ns_steps": 0}, "expected ns_steps one of .1, 2, 3, 4, 5, 6, 7., found 0"),
        ({"ns_steps": 2.5}, "ns_steps"),
        ({"momentum": 1.0}, "expected momentum within .0, 0.999., found 1.0"),
        ({"beta2": math.nan}, "beta2"),
        ({"clip": "norm"}, "expected clip one of .'none', 'update_rms', 'global_norm'., found 'norm'"),
        ({"trust_low": "0.5"}, "trust_low"),
        ({"normalisers": {"loss": 1.0}}, "normaliser one of"),
        ({"normalisers": {"loss_ema": 0.0}}, "normaliser of loss_ema within"),
        ({"control": {"lr": {"poles": (0, 1)}}}, "actuator .of what is switched on. one of"),
        (
            {"control": {"clip_threshold": {"poles": (1, 2)}}},
            "actuator .of what is switched on.*found 'clip_threshold'",
        ),
        ({"beta2": None, "control": {"beta2": {"poles": (0.9, 0.95)}}}, "found 'beta2'"),
        ({"control": {"beta2": {"poles": (0.9,)}}}, "number of poles of beta2"),
        ({"control": {"beta2": {"poles": 0.9}}}, "number of poles of beta2"),
        ({"control": {"beta2": (0.9, 0.95)}}, "type of the law of beta2 .*found <class 'tuple'>"),
        ({"control": None}, "type of control .*found <class 'NoneType'>"),
        ({"normalisers": ["loss_ema"]}, "type of normalisers .*found <class 'list'>"),
        ({"control": {"beta2": {"bias": 1.0}}}, "number of poles of beta2"),
        ({"control": {"beta2": {"poles": (0.9, 1.5)}}}, "pole of beta2 within"),
        ({"control": {"beta2": {"poles": (0.9, 0.95), "loss_ema": 9}}}, "loss_ema of beta2 within .-8, 8., found 9"),
        ({"control": {"beta2": {"poles": (0.9, 0.95), "bias": -8.5}}}, "bias of beta2"),
        ({"control": {"beta2": {"poles": (0.9, 0.95), "loss": 1}}}, "coefficient of beta2 one of"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train.MatrixPolicy(**fields)


def plain_muon(params: list[nn.Parameter], momentum: Tensor, second: Tensor, lr: float) -> None:
    """A step of Muon as it is without a policy, in the same operations. All of one shape; buffers are updated."""
    grads = torch.stack([p.grad for p in params])
    momentum.lerp_(grads, 1 - MUON["momentum"])
    update = train.orthogonalise(grads.lerp_(momentum, MUON["momentum"]))
    update = train.normalise_variance(update, second, 0.95)
    weights = torch.stack([p.data for p in params])
    update = train.decay(weights, update, MUON["weight_decay"])
    size = max(1.0, grads.size(-2) / grads.size(-1)) ** 0.5
    torch._foreach_add_(params, list(update.unbind()), alpha=-lr * size)


def test_the_default_is_plain_muon_to_the_bit() -> None:
    found, expected = parameters()[:2], parameters()[:2]
    optimizer = train.Muon(by_shape(found, **MUON))
    momentum, second = torch.zeros(2, 6, 4), torch.zeros(2, 6, 1)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(found, expected, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        with torch.no_grad():
            plain_muon(expected, momentum, second, 0.02)
        assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


ON = {"trust": "layerwise", "clip": "update_rms"}  # so that every actuator has something to move


def controlled(name: str, law: dict[str, Any], **fields: Any) -> train.MatrixPolicy:
    return train.MatrixPolicy(control={name: law}, **fields)


@pytest.mark.parametrize("name", train.ACTUATORS)
def test_an_actuator_stands_where_its_sensors_put_it(name: str) -> None:
    low, high = (0.5, 0.9) if name != "beta2" else (0.8, 0.99)
    law = {"poles": (low, high), "bias": -1.0, "grad_norm_ema": 2.0, "step_fraction": 4.0}
    policy = controlled(name, law, sharpness=0.5, normalisers={"grad_norm_ema": 10.0}, **ON)
    sensors = torch.tensor([[9.0, 9.0, 3.0, 9.0, 9.0, 0.25], [9.0, 9.0, 30.0, 9.0, 9.0, 0.25]])
    drives = [0.5 * (2.0 * x / 10 + 4.0 * 0.25 - 1.0) for x in (3.0, 30.0)]
    expected = [low + (high - low) / (1 + math.exp(-drive)) for drive in drives]
    found = policy.actuate(sensors)
    assert found[name].flatten().tolist() == pytest.approx(expected)
    assert all(found[other] == getattr(policy, other) for other in set(train.ACTUATORS) - {name})


STATIC = {"update_multiplier": 0.7, "trust_mix": 0.4, "clip_threshold": 0.3, "beta2": 0.8, "orthogonal_mix": 0.6}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", ["update_rms", "global_norm"])
@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("name", train.ACTUATORS)
def test_an_actuator_between_equal_poles_is_the_field(name: str, placement: str, clip: str, dtype: torch.dtype) -> None:
    value, parts = STATIC[name], {"trust": "layerwise", "clip": clip, "placement": placement}
    law = {"poles": (value, value), "loss_ema": 3.0, "step_fraction": -2.0}
    policies = {name: value} | parts, {"control": {name: law}} | parts, parts
    sets = [parameters(dtype) for _ in policies]
    optimizers = [train.Muon(by_shape(params, **MUON), policy) for params, policy in zip(sets, policies, strict=True)]
    for step in range(6):
        for params, optimizer in zip(sets, optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            optimizer.step(loss=2.0)  # a float will do
    near = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    fixed, found, other = sets
    for p, q in zip(fixed, found, strict=True):
        torch.testing.assert_close(p, q, rtol=near, atol=near)
    assert not all(torch.equal(p, q) for p, q in zip(found, other, strict=True))


def test_the_share_of_the_budget_is_a_sensor() -> None:
    law = {"poles": (0.0, 1.0), "step_fraction": 8.0, "bias": -4.0}
    moved = []
    for progress in (0.0, 1.0):
        p = nn.Parameter(torch.zeros(3, 3))
        optimizer = train.Muon([{"params": [p], "lr": 1.0}], train.MatrixPolicy(control={"update_multiplier": law}))
        optimizer.param_groups[0]["progress"] = progress
        p.grad = torch.eye(3)
        optimizer.step()
        moved.append(p.norm().item())
    assert moved[0] / moved[1] == pytest.approx(math.exp(-4), rel=0.01)


def test_an_actuator_reaches_both_poles() -> None:
    law = {"poles": (0.2, 0.8), "loss_ema": 8.0}
    sensors = torch.tensor([[-100.0, 0, 0, 0, 0, 0], [100.0, 0, 0, 0, 0, 0]])
    found = controlled("update_multiplier", law).actuate(sensors)["update_multiplier"]
    assert found.flatten().tolist() == pytest.approx([0.2, 0.8])


def test_sensors_are_what_they_are_called() -> None:
    """Two matrices, three steps, everything by hand; a loss that is no number leaves both loss sensors as they were."""
    beta, generator = 0.5, torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(2)]
    grads = [[torch.randn(3, 2, generator=generator) for _ in params] for _ in range(3)]
    optimizer = train.Muon(
        [{"params": params, "lr": 0.1, **MUON}],
        dataclasses.asdict(controlled("update_multiplier", {"poles": (1.0, 1.0)}, ema_beta=beta, decay="none")),
    )
    optimizer.param_groups[0]["progress"] = 0.25
    losses, moved = (5.0, 4.0, math.nan), []
    for step, loss in enumerate(losses):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, grads[step], strict=True):
            p.grad = g.clone()
        optimizer.step(loss=torch.tensor(loss))
        moved.append([(p - old).norm() / old.norm() for p, old in zip(params, before, strict=True)])
    for k, p in enumerate(params):
        norm, cosine, ratio = 0.0, 0.0, 0.0
        for step in range(3):
            g, rate = grads[step][k], max(1 - beta, 1 / (step + 1))
            later = max(1 - beta, 1 / max(1, step))  # what compares two steps is first known at the second
            norm += rate * (g.norm().item() - norm)
            if step > 0:
                last = grads[step - 1][k]
                cosine += later * ((g * last).sum() / (g.norm() * last.norm()) - cosine).item()
                ratio += later * (moved[step - 1][k].item() - ratio)
        found = optimizer.state[p]["means"].tolist()
        assert found == pytest.approx([4.5, 1.0, norm, ratio, cosine], abs=1e-5)


def test_control_acts_on_each_matrix_by_itself() -> None:
    """A matrix whose gradients keep their direction moves further than one whose gradients turn around."""
    law = {"poles": (0.1, 2.0), "grad_alignment_ema": 8.0}
    params = [nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    policy = controlled("update_multiplier", law)
    optimizer = train.Muon([{"params": params, "lr": 0.1, **MUON}], dataclasses.asdict(policy))
    g = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for step in range(10):
        params[0].grad, params[1].grad = g.clone(), g * (-1) ** step
        optimizer.step()
    steady, turning = (optimizer.state[p]["means"][4].item() for p in params)
    assert steady > 0.8
    assert turning < -0.8
    assert params[0].norm() > 5 * params[1].norm()


def test_the_trainer_takes_the_policy_from_the_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "MATRIX_POLICY", {"ns_steps": 3, "clip": "update_rms"})
    optimizer = train.Muon([{"params": [nn.Parameter(torch.zeros(2, 2))], "lr": 0.1, **MUON}])
    policy = optimizer.param_groups[0]["policy"]
    assert (policy["ns_steps"], policy["clip"]) == (3, "update_rms")
