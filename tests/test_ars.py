"""Adaptive resonance suppression: the law by hand and by its twin, and its place among torch's own tools."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from tests import twins


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)


def walk(kind: str, n: int = 140) -> list[float]:
    """Losses: of noise, of a slow swing (surprises repeat), with numbers that are none, of a jump."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, generator=generator).tolist()
    if kind == "swing":
        return [3 + math.sin(i / 15) + 0.01 * x for i, x in enumerate(noise)]
    if kind == "gaps":
        return [math.nan if i % 7 == 3 else math.inf if i % 11 == 5 else 3 + 0.1 * x for i, x in enumerate(noise)]
    if kind == "flat":
        return [2.3] * n  # whose mean is rounded
    return [3 + 0.1 * x + (2.0 if i >= 70 else 0.0) for i, x in enumerate(noise)]


LAWS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha": 2.0, "phi_min": 0.1, "rho_threshold": 0.7},
    {"scaled": True, "alpha": 0.2},
    {"history": 3, "window": 5},
)


@pytest.mark.parametrize("law", LAWS, ids=["published", "other set", "scaled", "short"])
@pytest.mark.parametrize("kind", ["jump", "swing", "gaps", "flat"])
def test_signals_are_those_of_the_twin_at_every_step(kind: str, law: dict[str, Any]) -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer, twin = train.ARS(torch.optim.SGD([p], 0.1), **law), twins.ResonanceTwin(**law)
    for step, loss in enumerate(walk(kind)):
        p.grad = torch.ones(2)
        optimizer.step(loss)
        found = optimizer.own.signals.tolist()
        assert found == pytest.approx(twin.step(loss), rel=1e-3, abs=2e-3), f"step {step}"


def test_the_law_by_hand() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = train.ARS(torch.optim.SGD([p], 1.0))
    for loss, surprise in ((2.0, 0.0), (4.0, 0.0), (3.5, 0.5), (3.0, 1 / 6)):
        p.grad, before = torch.ones(1), p.item()
        optimizer.step(loss)
        phi = max(0.3, 1 - math.tanh(surprise))
        assert optimizer.own.signals.tolist() == pytest.approx([surprise, 0.0, 1.0, phi])
        assert before - p.item() == pytest.approx(phi)


def test_where_surprises_repeat_noise_comes_and_the_gate_closes() -> None:
    p = nn.Parameter(torch.zeros(1000))
    optimizer = train.ARS(torch.optim.SGD([p], 1.0), jitter_scale=0.01)
    for loss in walk("swing", 80):
        p.grad, before = torch.zeros(1000), p.detach().clone()
        optimizer.step(loss)
    surprise, rho, psi, phi = optimizer.own.signals.tolist()
    assert rho > 0.75
    assert psi == pytest.approx(max(0.1, 1 - rho))
    assert phi == pytest.approx(max(0.3, 1 - math.tanh(surprise / psi)))
    assert (p - before).std().item() == pytest.approx(0.01 * phi, rel=0.1)


def test_relative_noise_follows_the_gradient() -> None:
    quiet, loud = nn.Parameter(torch.zeros(4000)), nn.Parameter(torch.zeros(4000))
    optimizer = train.ARS(torch.optim.SGD([quiet, loud], 1.0), jitter_scale=0.1, relative_jitter=True, alpha=0.0)
    for loss in walk("swing", 80):
        quiet.grad, loud.grad = torch.full((4000,), 1e-3), torch.full((4000,), 10.0)
        optimizer.step(loss)
    assert quiet.grad.std().item() == pytest.approx(1e-4, rel=0.1)
    assert loud.grad.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("on", ["gradient", "update"])
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.AdamW(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)]
)
def test_without_gain_and_noise_it_is_the_base_to_the_bit(make: Any, on: str) -> None:
    models = net(), net()
    bases = [make(model.parameters()) for model in models]
    ours = train.ARS(bases[0], alpha=0.0, jitter_scale=0.0, on=on)
    x, y = batch()
    for step in range(60):
        for model, optimizer in zip(models, (ours, bases[1]), strict=True):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean() * (1 + math.sin(step / 4))
            loss.backward()
            optimizer.step(loss) if optimizer is ours else optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_on_updates_an_adam_base_is_really_held_back() -> None:
    """Adam cancels a lasting scale of its gradients; of its steps it cannot."""

    def travelled(on: str) -> float:
        p = nn.Parameter(torch.zeros(50))
        optimizer = train.ARS(torch.optim.Adam([p], 0.01), alpha=1e6, jitter_scale=0.0, on=on)
        for step in range(60):
            p.grad = torch.ones(50)
            optimizer.step(3.0 + step % 2)
        return p.detach().abs().mean().item()

    free = 60 * 0.01
    assert travelled("gradient") > 0.8 * free
    assert travelled("update") < 0.4 * free


@pytest.mark.parametrize("form", ["float", "tensor", "keyword", "closure"])
def test_the_loss_may_come_in_any_form(form: str) -> None:
    model, (x, y) = net(), batch()
    optimizer = train.ARS(torch.optim.SGD(model.parameters(), 0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(5):
        loss = closure()
        given = {"float": loss.item(), "tensor": loss, "keyword": None, "closure": closure}[form]
        out = optimizer.step(loss=loss) if form == "keyword" else optimizer.step(given)
        losses.append(out.item())
    assert losses[-1] < losses[0]
    assert optimizer.own.seen.item() == 5
    assert optimizer.own.losses[-5:].tolist() == pytest.approx(losses)


def test_without_a_loss_it_says_what_it_needs() -> None:
    with pytest.raises(TypeError, match=r"ARS\.step: expected the loss"):
        train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)).step()


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"phi_min": 1.5}, "phi_min"),
        ({"psi_min": 0.0}, "psi_min"),
        ({"alpha": -1.0}, "alpha"),
        ({"history": 0}, "history"),
        ({"window": 0}, "window"),
        ({"rho_threshold": -5}, "rho_threshold"),
        ({"on": "x"}, "on"),
    ],
)
def test_a_law_out_of_bounds_is_refused(law: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"ARS: expected {message}"):
        train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), **law)


def test_a_base_that_evaluates_by_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="found LBFGS"):
        train.ARS(torch.optim.LBFGS([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(ValueError, match="found generator"):
        train.ARS(nn.Linear(1, 1).parameters())
    with pytest.raises(ValueError, match="found ARS"):  # the two would share an entry of the state dict
        train.ARS(train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)))


def test_settings_and_buffers_come_back_with_the_state() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = train.ARSOptimizer(torch.optim.SGD([p], 0.1), alpha=2.0, phi_min=0.1)
    for loss in walk("jump", 20):
        p.grad = torch.ones(3)
        optimizer.step(loss)
    other = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(3))], 0.1))
    other.load_state_dict(optimizer.state_dict())
    assert other.own.settings == optimizer.own.settings
    assert all(torch.equal(a, b) for a, b in zip(other.own.buffers(), optimizer.own.buffers(), strict=True))
    with pytest.raises(ValueError, match="entry 'ARS'"):
        other.load_state_dict(optimizer.base.state_dict())


def test_one_ars_around_another_keeps_both_states() -> None:
    p = nn.Parameter(torch.zeros(3))
    art = train.ARTDynamicsOptimizer([p], 4)
    outer = train.ARS(art)
    p.grad = torch.ones(3)
    outer.step(2.0)
    state = outer.state_dict()
    assert {"ARS", "ARTDynamicsOptimizer", "state", "param_groups"} == set(state)
    outer.load_state_dict(state)


def test_one_huge_loss_is_survived() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = train.ARS(torch.optim.SGD([p], 0.1), scaled=True, window=5)
    for step in range(30):
        p.grad = torch.ones(1)
        optimizer.step(torch.tensor([3e38 if step == 8 else 3.0 + step % 2]))  # a loss of shape (1,) will do
    assert optimizer.own.signals.isfinite().all()
    assert optimizer.own.signals[0] > 0.1
    assert p.isfinite().all()


def test_a_base_may_load_a_checkpoint_of_its_own() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    plain = torch.optim.SGD([q], 0.5, momentum=0.9)
    q.grad = torch.ones(2)
    plain.step()
    optimizer = train.ARS(torch.optim.SGD([p], 0.1, momentum=0.9))
    optimizer.base.load_state_dict(plain.state_dict())
    p.grad = torch.ones(2)
    optimizer.step(1.0)
    assert p[0].item() == pytest.approx(-0.5 * 1.9)
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].tolist() == pytest.approx([1.9, 1.9])
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(1.0)
    assert p[0].item() == pytest.approx(-0.5 * 1.9)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    optimizer = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1), window=5)
    other = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.9), window=7)
    with pytest.raises(RuntimeError, match="size mismatch"):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.base.param_groups is optimizer.param_groups
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_groups_that_do_not_fit_change_nothing() -> None:
    two = train.ARS(torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], 0.1), alpha=1.0)
    one = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), alpha=2.0)
    two.step(3.0)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        one.load_state_dict(two.state_dict())
    assert (one.own.settings["alpha"], one.own.seen.item()) == (2.0, 0)


def test_a_hook_may_change_what_is_saved() -> None:
    optimizer = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))
    optimizer.register_state_dict_post_hook(lambda _, state: state | {"note": 1})
    assert optimizer.state_dict()["note"] == 1


def test_rounding_is_no_surprise() -> None:
    optimizer = train.ARS(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), scaled=True)
    for _ in range(60):
        optimizer.step(2.3)
        assert optimizer.own.signals.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_sparse_row_gets_its_noise_once() -> None:
    table = nn.Embedding(2, 2000, sparse=True)
    optimizer = train.ARS(torch.optim.SGD(table.parameters(), 1.0), alpha=0.0, jitter_scale=0.01)
    for loss in walk("swing", 80):
        optimizer.zero_grad()
        (table(torch.tensor([0] * 100 + [1])) * 0).sum().backward()
        before = table.weight.detach().clone()
        optimizer.step(loss)
    noise = (table.weight - before).std(dim=1)
    assert noise.tolist() == pytest.approx([0.01, 0.01], rel=0.1)


def test_groups_may_be_added() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = train.ARS(torch.optim.SGD([p], 0.1, momentum=0.9))
    optimizer.add_param_group({"params": [q], "lr": 0.5})
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer.step(1.0)
    assert optimizer.base.param_groups is optimizer.param_groups
    assert (p[0].item(), q[0].item()) == pytest.approx((-0.1, -0.5))


def test_a_grad_scaler_drives_it() -> None:
    model, (x, y) = net(), batch()
    optimizer = train.ARS(torch.optim.AdamW(model.parameters(), 0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        scaler.scale(loss * (math.inf if step == 3 else 1.0)).backward()
        scaler.step(optimizer, loss=loss.detach())
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert optimizer.own.seen.item() == 29  # the step whose gradients overflowed was left out


def test_gradients_may_be_accumulated() -> None:
    models, (x, y) = (net(), net()), batch()
    whole, parts = (train.ARS(torch.optim.SGD(model.parameters(), 0.1)) for model in models)
    for _ in range(10):
        whole.zero_grad()
        parts.zero_grad()
        loss = (models[0](x) - y).square().mean()
        loss.backward()
        total = 0.0
        for half in (slice(0, 8), slice(8, 16)):
            part = (models[1](x[half]) - y[half]).square().mean() / 2
            part.backward()
            total += part.item()
        whole.step(loss)
        parts.step(total)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_makes_noise_only_where_surprises_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "MACHINE", torch.device("cuda"))  # on a CPU a step asks, which a graph cannot
    p = nn.Parameter(torch.zeros(4000))
    optimizer = train.ARS(torch.optim.SGD([p], 1.0), alpha=0.0, jitter_scale=0.01, window=50)
    step, quiet, loud = torch.compile(optimizer.step), [], []
    for loss in walk("swing", 80):
        before, p.grad = p.detach().clone(), torch.zeros_like(p)
        step(loss=torch.tensor(loss))
        (loud if optimizer.own.signals[2] < 0.5 else quiet).append((p - before).std().item())
    assert set(quiet) == {0.0}
    assert loud == pytest.approx([0.01] * len(loud), rel=0.1)
    assert loud


@pytest.mark.slow
@pytest.mark.parametrize("on", ["gradient", "update"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_step_keeps_its_signals(on: str) -> None:
    found = []
    for compiled in (False, True):
        p = nn.Parameter(torch.ones(8))
        optimizer = train.ARS(torch.optim.SGD([p], 0.1), jitter_scale=0.0, window=6, on=on)
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for loss in walk("jump", 12):
            p.grad = torch.full((8,), 0.5)
            step(loss=torch.tensor(loss))
        found.append([p.detach().clone(), *(buffer.clone() for buffer in optimizer.own.buffers())])
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(eager, graph)
    assert found[1][3].item() == 12
