"""Adaptive control: each law by hand, the collapse of the literal rule, freezing and revival, dither, the trainer."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train
from tests import twins

LAW = train.Laws()
BASES = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, 0.01),
    "adagrad": lambda params: torch.optim.Adagrad(params, 0.05),
    "online_adagrad": lambda params: train.OnlineAdaGrad(params, 0.05),
    "fused": lambda params: train.OPTIMIZERS["adamw"](params, 0.01),
    "online_sgd": lambda params: train.OnlineSGD(params, 0.05),
    "muon": lambda params: train.Muon(
        [{"params": [p], "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0} for p in params]
    ),
    "ars": lambda params: train.ARS(torch.optim.AdamW(params, 0.01), jitter_scale=0.0),  # its noise is no rest
}


def after(*means: float, law: train.Laws = LAW, spread: float = 1e-4, **start: Any) -> train.Snapshot:
    """The snapshot behind windows of these mean losses, all of one variance."""
    now = train.Snapshot(**{"lr": 0.01, "momentum": 0.9, "sigma": 1e-3} | start)
    for mean in means:
        now = law.decide(now, mean, spread, math.nan, math.nan)
    return now


# ── laws ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_window_only_looks() -> None:
    now = after(2.0)
    assert (now.lr, now.momentum, now.sigma, now.loss, now.loss_ema) == (0.01, 0.9, 1e-3, 2.0, 2.0)
    assert now.variance == pytest.approx(1e-4 / 4)


def test_a_gain_beyond_the_noise_raises_the_rate() -> None:
    now = after(2.0, 1.9)
    assert now.lr == pytest.approx(0.01 * 1.02)
    assert now.trend == pytest.approx(0.1 / 1.9)


def test_within_the_noise_nothing_moves_but_the_dither() -> None:
    band = LAW.kappa * math.sqrt(1e-4 / 4 / LAW.window)
    for change in (-0.9, 0.9):
        now = after(2.0, 2.0 * (1 + change * band))
        assert (now.lr, now.momentum) == (0.01, 0.9)
        assert now.sigma == pytest.approx(1.1e-3)
    assert after(2.0, 2.0 / (1 + 1.1 * band)).lr > 0.01


def test_patience_then_one_drop_then_hold() -> None:
    rates = [after(*[2.0 + 0.1 * i for i in range(n)]).lr for n in range(1, 10)]
    variance = 1e-4 / 2.2**2
    drop = 1 - 0.2 / (1 + LAW.damping * variance)
    assert rates[:2] == [0.01, 0.01]
    assert rates[2] == pytest.approx(0.01 * drop)
    assert rates[2 : 2 + LAW.cooldown + 1] == [rates[2]] * (LAW.cooldown + 1)
    assert rates[-1] < rates[2]


def test_noise_damps_a_drop() -> None:
    calm, noisy = (after(2.0, 3.0, 4.0, spread=spread) for spread in (1e-4, 0.3))
    assert 0.01 * 0.8 < calm.lr < noisy.lr < 0.01


def test_momentum_rises_with_reward_and_steady_gain_and_falls_with_noise() -> None:
    """By a twentieth of the way from one, up and down alike, each by what happened twice."""
    up, down = 1 - 0.1 * 0.95, 1 - 0.1 / 0.95
    assert after(2.0, 1.9).momentum == 0.9
    assert after(2.0, 1.9, 1.8).momentum == pytest.approx(up)
    assert after(2.0, 2.2).momentum == 0.9
    assert after(2.0, 2.2, 2.4).momentum == pytest.approx(down)
    assert after(2.0, 2.2, 2.4, law=dataclasses.replace(LAW, patience=1)).momentum == pytest.approx(down)
    start = after(2.0)
    now = LAW.decide(dataclasses.replace(start, reward=1.0), 2.0, 1e-4, math.nan, 2.0)
    assert (now.reward, now.reward_trend) == (2.0, 1.0)
    assert now.momentum == pytest.approx(up)
    assert LAW.decide(start, 2.0, 1e-2, math.nan, math.nan).momentum == pytest.approx(down)


def test_dither_halves_when_unstable_and_stays_within_its_bounds() -> None:
    assert after(2.0, 2.2).sigma == 5e-4
    assert after(2.0, 1.9).sigma == 1e-3
    assert after(*[2.0] * 80).sigma == LAW.sigma_bounds[1]


def test_bounds_hold() -> None:
    law = dataclasses.replace(LAW, lr_bounds=(0.009, 0.0101), mu_bounds=(0.89, 0.901))
    assert after(*[2.0 - 0.1 * i for i in range(10)], law=law).lr == 0.0101
    down = after(*[2.0 + 0.1 * i for i in range(30)], law=law)
    assert down.lr == 0.009
    assert down.momentum == 0.89


def test_a_lost_window_drops_at_once_and_teaches_nothing() -> None:
    before = after(2.0, 1.9)
    now = LAW.decide(before, math.nan, math.nan, math.nan, math.nan)
    assert now.lr == pytest.approx(before.lr * 0.8)
    assert (now.loss, now.loss_ema, now.resting) == (before.loss, before.loss_ema, LAW.cooldown)


def test_blended_weights_shift_with_stability() -> None:
    law = dataclasses.replace(LAW, rule="blend", cycle=10**6)
    start = after(2.0, law=law)
    calm = law.decide(start, 1.9, 1e-4 * (1.9 / 2) ** 2, math.nan, math.nan)
    wild = law.decide(start, 1.9, 1e-3, math.nan, math.nan)
    assert calm.lr == pytest.approx(0.01 * 1.02, rel=1e-3)  # half of trend and of the cycle's crest, which say the same
    assert wild.lr < 0.01 < calm.lr
    known = dataclasses.replace(start, grad_norm_ema=1.0)
    assert law.decide(known, 1.9, 1e-4, 3.0, math.nan).lr < law.decide(known, 1.9, 1e-4, 1.0, math.nan).lr
    trough = dataclasses.replace(law, cycle=4)  # the second window is half way through it
    assert trough.decide(start, 1.9, 1e-4, math.nan, math.nan).lr < calm.lr


@pytest.mark.parametrize("rule", ["trend", "blend"])
@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_its_twin_at_every_step(rule: str, seed: int) -> None:
    """Over losses that fall, rest, rise and break, with gradients and rewards that jump."""
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], 0.01, momentum=0.9)
    settings = {"lr": 0.01, "momentum": 0.9, "sigma": 1e-3, "rule": rule, "window": 5}
    control, twin = train.AdaptiveScheduler(optimizer, nn.ParameterList([p]), **settings), twins.ControlTwin(**settings)
    level, rates = 3.0, set()
    for step in range(1200):
        level *= 1 + (-0.002, 0.0, 0.004, -0.001)[step // 100 % 4]
        size = 0.3 if step % 90 < 10 else 0.01
        loss = math.nan if step == 700 else level * (1 + size * torch.randn((), generator=generator).item())
        norm = 5.0 if step % 70 < 5 else 1.0
        reward = step % 55 / 10 if step % 11 == 0 else None
        p.grad = torch.full((3,), norm / 3**0.5)
        now = control.step(loss, reward)
        twin.step(loss, norm, reward)
        assert (now.lr, now.momentum, now.sigma) == pytest.approx((twin.lr, twin.momentum, twin.sigma), rel=1e-3), step
        rates.add(round(now.lr, 7))
    assert len(rates) > 20


def test_the_literal_rule_is_literal() -> None:
    law, generator = train.Laws(rule="literal"), torch.Generator().manual_seed(0)
    now, factors = train.Snapshot(0.01, 0.9, 0.0), []
    for _ in range(60):
        later = law.decide(now, 2 + 0.1 * torch.randn((), generator=generator).item(), 0.0, math.nan, math.nan)
        factors.append(round(later.lr / now.lr, 9))
        now = later
        if now.lr < 1e-5:
            break
    assert set(factors[1:-1]) == {1.02, 0.8}


def test_on_noise_the_literal_rule_collapses_and_the_window_does_not() -> None:
    """The loss falls steadily below its noise: half of the steps improve, where 92 % would be needed."""
    assert math.log(1 / 0.8) / (math.log(1 / 0.8) + math.log(1.02)) == pytest.approx(0.92, abs=0.005)

    def end(rule: str) -> float:
        optimizer = train.OnlineSGD([nn.Parameter(torch.zeros(1))], lr=0.01, rule=rule)
        generator = torch.Generator().manual_seed(1)
        for step in range(2000):
            optimizer.step(3 - step / 1000 + 0.2 * torch.randn((), generator=generator).item())
        return optimizer.param_groups[0]["lr"]

    assert end("literal") < 1e-4
    assert end("trend") > 0.008


def test_a_start_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected lr in its bounds, within \(1e-06, 0.05\), found 0.5"):
        train.OnlineSGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(ValueError, match="expected lr in its bounds"):
        train.AdaptiveScheduler(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), nn.Linear(1, 1), lr_bounds=(1.0, 0.1)
        )


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"rule": "greedy"}, "rule"),
        ({"up": 0.9}, "up"),
        ({"down": 1.5}, "down"),
        ({"window": 1}, "window"),
        ({"kappa": -1}, "kappa"),
        ({"probe": 0}, "probe"),
    ],
)
def test_a_law_out_of_bounds_is_refused(law: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Laws: expected {message}"):
        train.Laws(**law)


# ── the scheduler ─────────────────────────────────────────────────────────────────────────────────────────────────────


def task(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(64, 6)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)), x, torch.tanh(x[:, :3])


def fit(model: nn.Module, optimizer: Any, control: Any, data: tuple[Tensor, Tensor], steps: int) -> list[float]:
    losses, (x, y) = [], data
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        loss.backward()
        train.step_with(optimizer, loss.detach())
        control.step(loss)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("base", BASES)
def test_it_drives_every_optimizer_and_the_loss_falls(base: str) -> None:
    model, *data = task()
    optimizer = BASES[base](list(model.parameters()))
    control = train.AdaptiveScheduler(optimizer, model, lr=0.01, freeze_threshold=None, window=5)
    losses = fit(model, optimizer, control, data, 120)
    assert losses[-1] < 0.7 * losses[0]
    snap = control.now
    assert snap.windows == 24
    assert snap.lr != 0.01
    if "online" not in base:  # which has laws of its own
        assert optimizer.param_groups[0]["lr"] == snap.lr
        momentum = optimizer.param_groups[0].get(
            "momentum", optimizer.param_groups[0].get("betas", (snap.momentum,))[0]
        )
        assert momentum == snap.momentum


def test_chance_moves_little() -> None:
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(1))
    optimizer = train.OnlineSGD([p], lr=0.01)
    for _ in range(20 * 1000):
        optimizer.step(3 + 0.1 * torch.randn((), generator=generator).item())
    assert 0.8 < optimizer.own.now.momentum < 0.95
    assert 0.005 < optimizer.own.now.lr < 0.025


def test_a_reward_counts_whenever_it_comes() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.01, momentum=0.9)
    control = train.AdaptiveScheduler(optimizer, nn.Linear(1, 1), window=4)
    snaps = [control.step(2.0, reward) for reward in (None, 1.0, None, None, 3.0, None, None, None)]
    assert (snaps[3].reward, snaps[7].reward, snaps[7].reward_trend) == (1.0, 3.0, 2.0)


def test_a_momentum_may_come_back_from_zero() -> None:
    model, *data = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.5)
    control = train.AdaptiveScheduler(optimizer, model, lr=0.01, momentum=0.0, window=3, freeze_threshold=None)
    assert optimizer.param_groups[0]["momentum"] == 0.0
    fit(model, optimizer, control, data, 60)
    assert optimizer.param_groups[0]["momentum"] == control.now.momentum > 0.1


def test_what_explodes_halves_the_dither() -> None:
    start = after(2.0)
    assert LAW.decide(start, 2.0, 1.0, math.nan, math.nan).sigma == 5e-4


def test_without_gradients_the_norm_is_unknown() -> None:
    model, *_ = task()
    control = train.AdaptiveScheduler(torch.optim.SGD(model.parameters(), 0.01), model, window=2)
    for _ in range(4):
        snap = control.step(torch.tensor([2.0]))
    assert math.isnan(snap.grad_norm_ema)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_running_means_have_their_beta(beta: float) -> None:
    law = dataclasses.replace(LAW, ema_beta=beta)
    assert after(2.0, 1.0, law=law).loss_ema == pytest.approx(beta * 2 + (1 - beta) * 1)
    p = nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([p])
    control = train.AdaptiveScheduler(torch.optim.SGD([p], 0.01), model, ema_beta=beta)
    for g in (2.0, 1.0):
        p.grad = torch.full((1,), g)
        control.step(1.0)
    assert control.norms.tolist() == pytest.approx([beta * 2 + (1 - beta) * 1])


def test_groups_keep_the_ratios_of_their_rates() -> None:
    model, *_ = task()
    first, second = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.02}])
    train.AdaptiveScheduler(optimizer, model, lr=0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert [group["momentum"] for group in optimizer.param_groups] == [0, 0]


def test_as_a_factor_it_touches_no_group() -> None:
    model, *data = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.5)
    control = train.AdaptiveScheduler(optimizer, model, lr=1.0, lr_bounds=(0.3, 2.0), factor=True, window=5)
    fit(model, optimizer, control, data, 60)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.05, 0.5)
    assert 1.0 < control.now.lr <= 2.0


def test_signals_are_measured() -> None:
    model, x, y = task()
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    control = train.AdaptiveScheduler(optimizer, model, lr=1e-9, lr_bounds=(0.0, 1.0), window=4, freeze_threshold=None)
    losses = fit(model, optimizer, control, (x, y), 4)
    (model(x) - y).square().mean().backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    snap = control.now
    assert snap.loss == pytest.approx(sum(losses) / 4)
    assert snap.grad_norm_ema == pytest.approx(norm, rel=1e-4)
    assert snap.variance == pytest.approx(torch.tensor(losses).double().var().item() / snap.loss**2, abs=1e-12)


def test_dither_is_relative_and_off_by_default() -> None:
    def spread(**how: Any) -> list[float]:
        p, q = nn.Parameter(torch.full((4000,), 10.0)), nn.Parameter(torch.full((4000,), 0.1))
        model = nn.ParameterList([p, q])
        control = train.AdaptiveScheduler(torch.optim.SGD([p, q], 0.1), model, sigma=0.003, **how)
        control.step(1.0)
        return [p.std().item(), q.std().item()]

    assert spread() == pytest.approx([0.0, 0.0], abs=1e-7)
    assert spread(dither=True) == pytest.approx([0.03, 0.0003], rel=0.1)


# ── freezing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Two(nn.Module):
    """Two layers in a row; the inner one's gradient can be switched off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.gain = nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False), 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.outer(h * self.gain + h.detach() * (1 - self.gain))


def frozen_world(base: str, **how: Any) -> tuple[Two, Any, Any, Any]:
    model = Two()
    optimizer = BASES[base]([model.inner.weight, model.outer.weight])
    control = train.AdaptiveScheduler(optimizer, model, lr=1e-3, window=3, freeze_threshold=1e-4, **how)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
    return model, optimizer, control, lambda n: fit(model, optimizer, control, (x, x[:, :4]), n)


@pytest.mark.parametrize("base", BASES)
def test_what_is_at_rest_freezes_and_revives_without_losing_state(base: str) -> None:
    model, optimizer, control, train_on = frozen_world(base, probe=5)
    train_on(3)
    assert control.now.pct_frozen == 0
    model.gain = 0.0
    train_on(3 * 40)
    assert not model.inner.weight.requires_grad
    assert control.now.pct_frozen == pytest.approx(100 * 256 / (256 + 64))
    still, state = (
        model.inner.weight.detach().clone(),
        {k: torch.as_tensor(v).clone() for k, v in optimizer.state[model.inner.weight].items()},
    )
    train_on(2)
    assert torch.equal(model.inner.weight, still)
    assert all(torch.equal(torch.as_tensor(optimizer.state[model.inner.weight][k]), v) for k, v in state.items())
    model.gain = 1.0
    train_on(3 * 6)
    assert model.inner.weight.requires_grad
    assert not torch.equal(model.inner.weight, still)
    assert control.now.pct_frozen == 0


def test_it_drives_and_freezes_a_sparse_table() -> None:
    torch.manual_seed(0)
    busy, rests = (nn.Embedding(8, 4, sparse=True) for _ in range(2))
    tables = nn.ModuleList((busy, rests))
    optimizer = train.OPTIMIZERS["sparse_adam"](tables.parameters(), lr=0.01)
    control = train.AdaptiveScheduler(optimizer, tables, lr=0.02, window=3, freeze_threshold=0.1, probe=5, ema_beta=0.5)
    at, seen = torch.tensor([0, 0, 3]), []
    for step in range(60):
        gain = 1.0 if step < 3 or step >= 45 else 0.0
        loss = (busy(at) - 5).square().mean() + gain * (rests(at) - 5).square().mean()
        loss.backward()
        optimizer.step()
        control.step(loss)
        optimizer.zero_grad()
        seen.append(rests.weight.requires_grad)
        if step == 36:
            still, state = rests.weight.detach().clone(), optimizer.state[rests.weight]["exp_avg"].clone()
        if step == 38:
            assert torch.equal(rests.weight, still)
            assert torch.equal(optimizer.state[rests.weight]["exp_avg"], state)
    assert seen[0]
    assert not all(seen)
    assert seen[-1]
    assert optimizer.param_groups[0]["lr"] == control.now.lr != 0.02


def test_freezing_saves_the_work_of_the_backward_pass() -> None:
    model, _, control, train_on = frozen_world("sgd")

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model(torch.ones(32, 16)).sum().backward()
        model.zero_grad()
        return counter.get_total_flops()

    before = flops()
    model.gain = 0.0
    train_on(3 * 42)
    assert control.now.pct_frozen > 0
    assert flops() < 0.7 * before


def test_a_probe_lasts_one_step() -> None:
    model, _, _, train_on = frozen_world("sgd", probe=5)
    model.gain = 0.0
    train_on(3 * 34)
    awake = []
    for _ in range(15):
        train_on(1)
        awake.append(model.inner.weight.requires_grad)
    assert sum(awake) == 1


def test_the_last_one_is_never_frozen() -> None:
    model, *data = task()
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    control = train.AdaptiveScheduler(optimizer, model, window=2, freeze_threshold=1e9)
    fit(model, optimizer, control, data, 10)
    assert [p.requires_grad for p in model.parameters()].count(True) == 1


def test_the_last_one_that_trains_is_never_frozen() -> None:
    """The norm of one that has no gradient any more, once large, does not stand for the others."""
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([first, second], 0.01)
    control = train.AdaptiveScheduler(optimizer, nn.ParameterList([first, second]), window=2, freeze_threshold=0.5)
    for step in range(20):
        loss = first.square().sum() if step < 4 else 0.01 * second.square().sum()
        loss.backward()
        optimizer.step()
        control.step(loss)
        optimizer.zero_grad()
    assert second.requires_grad


def test_what_the_user_froze_stays_frozen() -> None:
    model, *data = task()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    control = train.AdaptiveScheduler(optimizer, model, window=2, probe=1)
    fit(model, optimizer, control, data, 20)
    assert not model[0].weight.requires_grad
    assert control.now.pct_frozen == 0


def test_control_resumes_where_it_was() -> None:
    model, optimizer, control, train_on = frozen_world("sgd")
    model.gain = 0.0
    train_on(3 * 42 + 1)
    buffer = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), control.state_dict()), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, twin, _, _ = frozen_world("sgd")
    other.gain = 0.0
    twin.load_state_dict(saved[1])  # the scheduler is built behind it, with other settings
    resumed = train.AdaptiveScheduler(twin, other, window=3, freeze_threshold=1.0, probe=3)
    for part, state in zip((other, twin, resumed), saved, strict=True):
        part.load_state_dict(state)
    assert not other.inner.weight.requires_grad
    assert dataclasses.asdict(resumed.now) == pytest.approx(dataclasses.asdict(control.now), abs=0, nan_ok=True)
    assert twin.param_groups[0]["lr"] == control.now.lr
    train_on(30)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(3))
    fit(other, twin, resumed, (x, x[:, :4]), 30)
    assert torch.equal(model.outer.weight, other.outer.weight)
    assert dataclasses.asdict(resumed.now) == pytest.approx(dataclasses.asdict(control.now), nan_ok=True)
