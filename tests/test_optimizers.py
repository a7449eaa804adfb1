"""Every optimizer of train.py against a slow twin at every step, and what all of them owe their users."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from tests import twins
from tests.nosync import NoSync

SHAPES = ((6, 4), (6, 4), (4, 6), (5, 5))
MUON = {"momentum": 0.9, "weight_decay": 0.1}
ADAM = {"betas": (0.9, 0.95), "weight_decay": 0.1}
POLICIES: dict[str, dict[str, Any]] = {
    "heavy ball": {"nesterov": False, "momentum": 0.8},
    "momentum after": {"placement": "after"},
    "raw": {"orthogonalisation": "none"},
    "three steps": {"ns_steps": 3, "beta2": None},
    "seven steps": {"ns_steps": 7},
    "half orthogonal": {"orthogonal_mix": 0.5},
    "no second moment": {"beta2": None, "decay": "none"},
    "trust": {"trust": "layerwise", "trust_mix": 0.7, "trust_high": 1.5},
    "clipped, each": {"clip": "update_rms", "clip_threshold": 0.6, "update_multiplier": 1.5},
    "clipped, together": {"clip": "global_norm", "clip_threshold": 0.5, "decay": "decoupled"},
    "controlled": {
        "trust": "layerwise",
        "clip": "global_norm",
        "sharpness": 2.0,
        "ema_beta": 0.8,
        "normalisers": {"loss_ema": 3.0, "grad_norm_ema": 4.0},
        "control": {
            "update_multiplier": {"poles": (0.5, 1.5), "grad_alignment_ema": 3.0, "loss_improvement_ema": -2.0},
            "trust_mix": {"poles": (0.2, 0.8), "update_ratio_ema": 5.0, "bias": -0.5},
            "clip_threshold": {"poles": (0.3, 0.9), "grad_norm_ema": -1.0, "bias": 1.0},
            "beta2": {"poles": (0.8, 0.99), "loss_ema": 2.0, "bias": -2.0},
            "orthogonal_mix": {"poles": (0.6, 1.0), "step_fraction": 1.0, "grad_alignment_ema": 1.0},
        },
    },
}


def by_shape(params: list[nn.Parameter], **settings: Any) -> list[dict[str, Any]]:
    shapes = dict.fromkeys(p.shape for p in params)
    return [{"params": [p for p in params if p.shape == shape], "lr": 0.02, **settings} for shape in shapes]


@dataclass(frozen=True)
class Case:
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    twin: Callable[[list[nn.Parameter]], Any]
    sparse: bool = False


def online(params: Any, make: Any, **settings: Any) -> Any:
    return make(params, lr=0.02, rule="literal", **settings)


def muon_case(policy: dict[str, Any]) -> Case:
    return Case(
        lambda params: train.Muon(by_shape(params, **MUON), policy),
        lambda params: twins.MuonTwin(params, lr=0.02, **MUON | policy),
    )


def ars_case(base: str, **law: Any) -> Case:
    return Case(
        lambda params: train.ARS(TABLE[base].make(params), window=8, **law),
        lambda params: twins.ARSTwin(TABLE[base].twin(params), window=8, **law),
        TABLE[base].sparse,
    )


TABLE = {
    "muon": muon_case({}),
    "adamw": Case(
        lambda params: train.OPTIMIZERS["adamw"](by_shape(params, **ADAM)),
        lambda params: twins.AdamTwin(params, 0.02, eps=train.ADAM_EPS, **ADAM),
    ),
    "sparse_adam": Case(
        lambda params: train.OPTIMIZERS["sparse_adam"](by_shape(params, betas=(0.9, 0.95))),
        lambda params: twins.AdamTwin(params, 0.02, (0.9, 0.95), train.ADAM_EPS, sparse=True),
        sparse=True,
    ),
    "online_sgd": Case(
        lambda params: online(params, train.OnlineSGD, mu_bounds=(0.9, 0.9)),
        lambda params: twins.LiteralTwin(twins.SGDTwin(params, 0.02, 0.9)),
    ),
    "online_adagrad": Case(
        lambda params: online(params, train.OnlineAdaGrad),
        lambda params: twins.LiteralTwin(twins.AdaGradTwin(params, 0.02)),
    ),
}
CASES = TABLE | {f"muon, {name}": muon_case(policy) for name, policy in POLICIES.items()}
CASES |= {
    "ars over adamw": ars_case("adamw", jitter_scale=0.05, rho_threshold=0.2),
    "ars over muon": ars_case("muon", alpha=2.0, phi_min=0.1, rho_threshold=0.7),
    "ars over sparse_adam": ars_case("sparse_adam", jitter_scale=0.0),
    "ars, scaled": ars_case("online_sgd", scaled=True, alpha=0.3),
    "ars, relative noise": ars_case("adamw", relative_jitter=True, jitter_scale=0.5, rho_threshold=0.2),
    "ars on updates": ars_case("adamw", on="update", phi_min=0.05),
    "art": Case(
        lambda params: train.ARTDynamicsOptimizer(params, 4, lr=0.02),
        lambda params: twins.AdamTwin(params, 0.02, (0.9, 0.999), 1e-8, weight_decay=0.01),
    ),
}
over_all = pytest.mark.parametrize("name", sorted(CASES))


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    with torch.no_grad():
        params[1].zero_()  # as blocks start: some rules divide by the weight's norm
    return params


class World:
    """Gradients and losses of a noisy quadratic, the same for whoever asks, with a turn for the worse at step 20."""

    def __init__(self, case: Case, params: list[nn.Parameter]) -> None:
        self.case, self.params, self.generator = case, params, torch.Generator().manual_seed(7)

    def loss(self, step: int) -> float:
        swing = 0.3 * math.sin(step / 3) + (2.0 if step >= 20 else 0.0)
        return 3.0 + swing + 0.2 * torch.rand((), generator=self.generator).item()

    def set_gradients(self) -> None:
        for p in self.params:
            g = p.detach().float() - 1 + 0.5 * torch.randn(p.shape, generator=self.generator)
            if self.case.sparse:
                g[torch.rand(len(g), generator=self.generator) < 0.5] = 0.0
            p.grad = g.to(p.dtype).to_sparse(1) if self.case.sparse else g.to(p.dtype)


def run(case: Case, params: list[nn.Parameter], optimizer: Any, steps: int, world: World | None = None) -> World:
    world = world or World(case, params)
    for step in range(steps):
        world.set_gradients()
        train.step_with(optimizer, torch.tensor(world.loss(step)))
    return world


# ── twins ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_tests_has_every_optimizer() -> None:
    assert set(TABLE) == set(train.OPTIMIZERS)


@over_all
def test_it_does_what_its_twin_does_at_every_step(name: str) -> None:
    case, params = CASES[name], parameters()
    optimizer, twin = case.make(params), case.twin(params)
    world = World(case, params)
    for step in range(40):
        world.set_gradients()
        grads, loss = [p.grad.clone() for p in params], torch.tensor(world.loss(step))
        torch.manual_seed(step)
        train.step_with(optimizer, loss)
        torch.manual_seed(step)
        twin.step(grads, loss.item())
        for p, expected in zip(params, twin.params, strict=True):
            assert torch.allclose(p.detach().double(), expected, rtol=2e-3, atol=2e-4), f"step {step}"


# ── what every optimizer owes ─────────────────────────────────────────────────────────────────────────────────────────


@over_all
def test_a_state_saved_in_mid_run_goes_on_the_same(name: str) -> None:
    case, params = CASES[name], parameters()
    optimizer = case.make(params)
    world = run(case, params, optimizer, 12)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = case.make(others)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    state = world.generator.get_state()
    torch.manual_seed(3)
    run(case, params, optimizer, 8, world)
    world.generator.set_state(state)
    world.params = others
    torch.manual_seed(3)
    run(case, others, resumed, 8, world)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@over_all
def test_a_copy_moves_its_own_parameters(name: str, copied: Any) -> None:
    case, params = CASES[name], parameters()
    optimizer = case.make(params)
    run(case, params, optimizer, 3)
    before = [p.detach().clone() for p in params]
    twin = copied(optimizer)
    own = [p for group in twin.param_groups for p in group["params"]]
    run(case, own, twin, 3)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(own, before, strict=True))


@over_all
def test_it_is_deterministic(name: str) -> None:
    def end() -> list[Tensor]:
        torch.manual_seed(5)
        params = parameters()
        run(CASES[name], params, CASES[name].make(params), 15)
        return params

    assert all(torch.equal(p, q) for p, q in zip(end(), end(), strict=True))


@over_all
def test_the_loss_falls(name: str) -> None:
    case, params = CASES[name], parameters()
    optimizer = case.make(params)

    def loss() -> Tensor:
        return sum((p - 1).square().sum() for p in params)  # type: ignore[return-value]

    first = loss().item()
    for _ in range(150):
        value = loss()
        value.backward()
        for p in params:
            p.grad = p.grad.to_sparse(1) if case.sparse else p.grad
        train.step_with(optimizer, value.detach() / 50)
        optimizer.zero_grad()
    assert loss().item() < 0.7 * first


@over_all
def test_bfloat16_parameters_learn(name: str) -> None:
    case, params = CASES[name], parameters(torch.bfloat16)
    optimizer, before = case.make(params), [p.detach().clone() for p in params]
    run(case, params, optimizer, 12)
    for p, old in zip(params, before, strict=True):
        assert p.dtype == torch.bfloat16
        assert p.isfinite().all()
        assert not torch.equal(p, old)


@over_all
def test_a_parameter_without_gradient_stands_still_and_keeps_its_state(name: str) -> None:
    case, params = CASES[name], parameters()
    optimizer = case.make(params)
    world = run(case, params, optimizer, 5)
    still, state = params[0].detach().clone(), copy.deepcopy(optimizer.state[params[0]])
    for step in range(5):
        world.set_gradients()
        params[0].grad = None
        train.step_with(optimizer, torch.tensor(world.loss(step)))
    assert torch.equal(params[0], still)
    assert state
    for key, value in state.items():
        assert torch.equal(torch.as_tensor(optimizer.state[params[0]][key]), torch.as_tensor(value)), key
    for p in params:
        p.grad = None
    train.step_with(optimizer, torch.tensor(1.0))  # nothing to do is no error


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"online_sgd", "online_adagrad", "ars, scaled"}))
def test_a_scheduler_sets_its_lr(name: str) -> None:
    params = parameters()
    optimizer = CASES[name].make(params)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    rates = []
    for _ in range(4):
        run(CASES[name], params, optimizer, 1)
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[3] < rates[0] / 50


@over_all
def test_hooks_run(name: str) -> None:
    params = parameters()
    optimizer, seen = CASES[name].make(params), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("save"))
    run(CASES[name], params, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before", "after", "save", "load", "loaded"]


DENSE = sorted(name for name in CASES if "sparse" not in name and "online" not in name and name != "ars, scaled")


@pytest.mark.parametrize("name", [name for name in DENSE if name != "art"])  # torch's plain AdamW reads its step
def test_no_number_is_read_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "MACHINE", torch.device("cuda"))  # on a CPU reading is free, and done
    params = parameters()
    optimizer = CASES[name].make(params)
    world = run(CASES[name], params, optimizer, 12)
    world.set_gradients()
    loss, before = torch.tensor(world.loss(3)), params[0].detach().clone()
    with NoSync():  # raises where one is
        train.step_with(optimizer, loss)
    assert not torch.equal(params[0], before)


@pytest.mark.parametrize("name", DENSE)
def test_what_depends_on_no_number_runs_with_shapes_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor without numbers refuses also what a dispatch mode does not see: lists, masks, comparisons."""
    monkeypatch.setattr(train, "MACHINE", torch.device("cuda"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = [nn.Parameter(torch.empty(shape)) for shape in SHAPES]
        optimizer = CASES[name].make(params)
        model, memory = nn.ParameterList(params), train.ARTMemory(4, quantile=0.5, recycle=True)
        control = train.AdaptiveScheduler(optimizer, model, lr=0.01, window=9)
        for _ in range(4):
            for p in params:
                p.grad = torch.empty_like(p)
            train.step_with(optimizer, torch.empty(()))
            control.step(torch.empty(()))
            memory.loss(torch.empty(6, 4))
            memory.learn(torch.empty(6, 4))
    assert control.settings["steps"] == 4


@pytest.mark.gpu
@over_all
def test_a_step_does_not_stop_a_gpu(name: str) -> None:
    params = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    case = CASES[name]
    if case.sparse or "online" in name or "scaled" in name:
        pytest.skip("sparse gradients and the literal rule read numbers at every step")
    optimizer, before = case.make(params), params[0].detach().clone()
    for step in range(12):
        for p in params:
            p.grad = torch.randn_like(p)
        loss = torch.full((), 3.0, device="cuda")
        torch.cuda.set_sync_debug_mode("error" if step > 8 else "default")
        try:
            train.step_with(optimizer, loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(params[0], before)


@pytest.mark.gpu
def test_memory_and_control_do_not_stop_a_gpu() -> None:
    """Control reads once a window, which is longer than this."""
    params = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    optimizer, memory = torch.optim.AdamW(params, fused=True), train.ARTMemory(4, quantile=0.5, recycle=True).cuda()
    control = train.AdaptiveScheduler(optimizer, nn.ParameterList(params), lr=0.01, window=100)
    for step in range(12):
        for p in params:
            p.grad = torch.randn_like(p)
        loss, x = torch.full((), 3.0, device="cuda"), torch.randn(6, 4, device="cuda")
        torch.cuda.set_sync_debug_mode("error" if step > 8 else "default")
        try:
            optimizer.step()
            control.step(loss)
            memory.loss(x)
            memory.learn(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert control.settings["steps"] == 12
    assert memory.uses.sum() > 0
