"""Adaptive resonance memory: its laws, its twin, bounds of both codings, batches, the loss, and what it is used for."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from tests import twins
from tests.nosync import NoSync
from tests.test_train import tiny, tokens

FORMS = {
    "complement": {"coding": "complement", "vigilance": 0.8},
    "raw": {"coding": "raw", "vigilance": 0.3},
    "many a step": {"coding": "complement", "vigilance": 0.85, "creations": 3},
    "recycling": {"coding": "complement", "vigilance": 0.9, "recycle": True, "max_traces": 4},
    "full": {"coding": "complement", "vigilance": 0.9, "max_traces": 3},
}


def clusters(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    """Inputs around four centres, (n, dim)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(4, dim, generator=torch.Generator().manual_seed(99))
    at = torch.randint(4, (n,), generator=generator)
    return centres[at] + 0.3 * torch.randn(n, dim, generator=generator)


@pytest.mark.parametrize("form", FORMS)
def test_traces_and_loss_are_those_of_the_twin_at_every_step(form: str) -> None:
    law = {"max_traces": 8, "eta": 0.2, "alpha": 1e-3} | FORMS[form]
    memory, twin = train.ARTMemory(6, **law), twins.ARTTwin(**law)
    for step in range(25):
        x = clusters(7, seed=step)
        assert memory.loss(x).item() / 0.01 == pytest.approx(twin.loss(x), rel=1e-3, abs=1e-5)
        memory.learn(x)
        twin.learn(x)
        k = len(twin.traces)
        assert int((memory.uses > 0).sum()) == k
        torch.testing.assert_close(memory.traces[:k], torch.tensor(twin.traces), rtol=1e-4, atol=1e-5)
        assert memory.uses[:k].tolist() == twin.uses
    assert k > 1


def test_by_hand() -> None:
    """One trace at the first input, pulled by eta to the minimum with the second."""
    memory = train.ARTMemory(2, vigilance=0.5, eta=0.5)
    first, second = torch.tensor([[0.0, 0.0]]), torch.logit(torch.tensor([[0.7, 0.4]]))
    memory.learn(first)
    assert memory.traces[0].tolist() == [0.5, 0.5, 0.5, 0.5]
    coded = memory.code(second)
    assert memory.compare(coded, memory.traces[:1])[1].item() == pytest.approx((0.5 + 0.4 + 0.3 + 0.5) / 2)
    memory.learn(second)
    assert memory.traces[0].tolist() == pytest.approx([0.5, 0.45, 0.4, 0.5])


def test_raw_traces_sink_without_limit() -> None:
    """Of signed inputs the minimum only falls, and noise has no smallest value."""
    memory = train.ARTMemory(16, max_traces=1, vigilance=-1.0, eta=0.5, coding="raw")
    generator, lows = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        memory.learn(torch.randn(1, 16, generator=generator))
        lows.append(memory.traces[0].mean().item())
    assert lows[1999] < lows[500] - 0.3 < lows[50] - 0.6 < -0.5


def test_complement_coded_traces_stay_above_vigilance() -> None:
    memory = train.ARTMemory(16, max_traces=8, vigilance=0.6, eta=0.5)
    for step in range(2000):
        memory.learn((1 + step / 100) * torch.randn(4, 16, generator=torch.Generator().manual_seed(step)))
        used = memory.traces[memory.uses > 0]
        assert used.min() >= 0
        assert used.sum(-1).min() >= 0.6 * 16 - 1e-3  # |w| >= vigilance * d


def test_unrelated_vectors_already_match_at_three_quarters() -> None:
    memory = train.ARTMemory(256)
    coded = memory.code(torch.randn(200, 256, generator=torch.Generator().manual_seed(0)))
    match = memory.compare(coded[:100], coded[100:])[1]
    assert match.mean().item() == pytest.approx(0.76, abs=0.01)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_vigilance_may_be_a_quantile_of_observed_matches(quantile: float) -> None:
    memory = train.ARTMemory(64, quantile=quantile)
    x = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    coded = [twins.ARTTwin(1, 0, 0, 0, "complement").code(row) for row in x]
    pairs = [sum(map(min, a, b)) / 64 for i, a in enumerate(coded) for j, b in enumerate(coded) if i != j]
    memory.learn(x)
    expected = torch.tensor(pairs).quantile(quantile).item()
    assert memory.vigilance.item() == pytest.approx(expected, abs=1e-4)
    for _ in range(200):  # it follows what it sees: of inputs that lie closer, more match
        memory.learn(x / 10)
    close = train.ARTMemory(64, quantile=quantile)
    close.learn(x / 10)
    assert memory.vigilance.item() == pytest.approx(close.vigilance.item(), abs=1e-3)
    assert memory.vigilance.item() > expected + 0.01
    memory.learn(x[:1])  # of one input there is no match


def test_a_row_that_is_no_number_teaches_nothing() -> None:
    sound, broken = train.ARTMemory(6), train.ARTMemory(6)
    x = clusters(8)
    sound.learn(x)
    broken.learn(x)
    bad = torch.cat((clusters(3, seed=1), torch.full((1, 6), torch.nan), torch.tensor([[torch.inf] + [0.0] * 5])))
    sound.learn(torch.cat((clusters(3, seed=1), bad[4:])))
    broken.learn(bad)
    assert broken.traces.isfinite().all()
    assert torch.equal(sound.traces, broken.traces)


@pytest.mark.parametrize("coding", ["complement", "raw"])
def test_the_loss_pulls_what_resonates_and_only_that(coding: str) -> None:
    memory = train.ARTMemory(6, vigilance=0.8, coding=coding, lam=1.0)
    home = torch.full((1, 6), 1.0)
    memory.learn(home)
    near, far = (home + 0.3).requires_grad_(), (-3 * home).requires_grad_()
    loss = memory.loss(torch.cat((near, far)))
    loss.backward()
    assert loss > 0
    assert not memory.traces.requires_grad
    assert near.grad.abs().min() > 0
    assert far.grad.abs().max() == 0
    pulled = (near - 5 * near.grad).detach()
    assert (pulled - home).norm() < (near - home).norm()


def test_inside_its_box_nothing_is_pulled() -> None:
    memory = train.ARTMemory(4, vigilance=0.3, eta=1.0)
    memory.learn(torch.full((1, 4), -1.0))
    memory.learn(torch.full((1, 4), 1.0))
    assert memory.uses.tolist()[:2] == [2.0, 0.0]
    assert memory.loss(torch.zeros(3, 4)).item() == 0.0
    assert memory.loss(torch.full((3, 4), 2.0)).item() > 0.0


def test_learning_reads_nothing_on_the_host() -> None:
    memory = train.ARTMemory(6)
    memory.learn(clusters(8))
    x = clusters(8, seed=3).requires_grad_()
    before = memory.uses.sum().item()
    with NoSync():  # raises where a number is read
        memory.loss(x).backward()
        memory.learn(x.detach())
    assert memory.uses.sum().item() > before


def test_recall_gives_the_nearest_traces_as_hidden_states() -> None:
    memory = train.ARTMemory(6, vigilance=0.9, creations=4)
    memory.learn(torch.cat((clusters(1, seed=5), -clusters(1, seed=5))))
    states, match = memory.recall(clusters(1, seed=5) + 0.05, 2)
    assert states.shape == (1, 2, 6)
    assert match[0, 0] > 0.9 > match[0, 1]
    torch.testing.assert_close(states[0, 0], clusters(1, seed=5)[0], atol=1e-2, rtol=1e-2)


# ── as one optimizer ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_original_coupling_trains_and_remembers() -> None:
    torch.manual_seed(0)
    body, head = nn.Linear(6, 8), nn.Linear(8, 4)
    optimizer = train.ARTDynamicsOptimizer([*body.parameters(), *head.parameters()], 8, lr=0.01, vigilance=0.7, lam=0.1)
    assert optimizer.describe(0, 7.53211) == "Step 0 | CE=7.5321 | ART=0.0000 | Resonated Trace=-1 | Sim=0.0000"
    losses = []
    for step in range(60):
        x = clusters(40, seed=step).unflatten(0, (8, 5))
        hidden = body(x).tanh()
        ce = nn.functional.cross_entropy(head(hidden[:, -1]), x[:, -1].argmax(-1) % 4)
        optimizer.zero_grad()
        (ce + optimizer.art_loss(hidden)).backward()
        optimizer.step(hidden=hidden)
        losses.append(ce.item())
    assert losses[-1] < 0.7 * losses[0]
    used = int((optimizer.own.uses > 0).sum())
    assert used >= 1
    assert optimizer.own.uses.sum() == pytest.approx(60 * 8, abs=60)
    trace, match, distance = optimizer.own.last.tolist()
    line = optimizer.describe(60, losses[-1])
    assert line == f"Step 60 | CE={losses[-1]:.4f} | ART={distance:.4f} | Resonated Trace={trace:.0f} | Sim={match:.4f}"
    assert 0 <= trace < used
    assert 0.7 <= match <= 1.0


def test_traces_travel_in_the_state() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = train.ARTDynamicsOptimizer([p], 6, quantile=0.5)
    p.grad = torch.ones(3)
    optimizer.step(hidden=clusters(8))
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = train.ARTDynamicsOptimizer([nn.Parameter(torch.zeros(3))], 6)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(other.own.buffers(), optimizer.own.buffers(), strict=True))
    assert other.own.settings == optimizer.own.settings


def test_a_loss_may_be_given_in_every_way() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = train.ARTDynamicsOptimizer([p], 6, lr=0.1)
    found = []
    for given in ((1.5,), (None, None), (lambda: torch.tensor(1.5),)):
        p.grad = torch.ones(3)
        found.append(optimizer.step(*given))
    p.grad = torch.ones(3)
    found.append(optimizer.step(loss=1.5))
    p.grad = torch.ones(3)
    found.append(optimizer.step(lambda: torch.tensor(2.5), loss=1.5))  # a closure is never passed over
    assert found == [1.5, None, 1.5, 1.5, 2.5]
    assert p.tolist() == pytest.approx([-0.5] * 3, rel=0.05)


@pytest.mark.parametrize(
    "law",
    [
        {"coding": "signed"},
        {"vigilance": 2.0},
        {"quantile": 1.5},
        {"eta": -1},
        {"eta": 2},
        {"max_traces": 0},
        {"lam": -5},
        {"alpha": -1},
        {"creations": -1},
    ],
)
def test_a_memory_out_of_bounds_is_refused(law: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"ARTMemory: expected {next(iter(law))}"):
        train.ARTMemory(4, **law)


def test_generation_may_recall() -> None:
    torch.manual_seed(0)
    model = train.build_model(tiny()).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    memory = train.ARTMemory(32, vigilance=0.5)
    prompt = tokens(2, 5)

    def text(**how: Any) -> Tensor:
        torch.manual_seed(1)
        return train.generate(model, prompt, 40, **how)

    plain = text()
    assert plain.shape == (2, 45)
    assert torch.equal(plain[:, :5], prompt)
    assert torch.equal(text(memory=memory), plain)  # nothing to recall yet
    memory.learn(4 * torch.randn(8, 32))
    assert torch.equal(text(memory=memory, share=0.0), plain)
    assert not torch.equal(text(memory=memory, share=0.9), plain)


def test_hidden_states_are_what_the_head_sees() -> None:
    model, idx = train.build_model(dataclasses.replace(tiny(), dtype="bfloat16")), tokens()
    logits, hidden = model(idx, return_hidden=True)
    assert hidden.shape == (*idx.shape, 32)
    assert torch.equal(train.capped(model.head(hidden), model.config.softcap), logits)
    loss, again = model(idx, idx, return_hidden=True)
    assert loss.shape == ()
    assert torch.equal(again, hidden)
