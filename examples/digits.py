"""Adaptive control and freezing on scikit-learn's handwritten digits: `python -m examples.digits`.

One MLP is trained three times, from the same weights on the same batches: by SGD, by SGD under AdaptiveScheduler, and
with freezing on top. Backward FLOPs of every step are counted. Flags: --steps, --seed, --lr. Needs scikit-learn
(`pip install -e '.[examples]'`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from train import AdaptiveScheduler

BATCH, HELD_OUT = 64, 360
LAWS = {"lr_bounds": (1e-4, 0.5), "mu_bounds": (0.5, 0.95), "probe": 25}
RUNS: dict[str, dict[str, Any] | None] = {
    "SGD": None,
    "adaptive": LAWS | {"freeze_threshold": None},
    "adaptive, freezing": LAWS | {"freeze_threshold": 0.02},
}


@dataclass(frozen=True)
class Result:
    """Of one run. Step by step: frozen, percent of all parameters; flops, of the backward pass."""

    loss: float
    accuracy: float
    lr: float
    frozen: list[float]
    flops: list[int]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """(1797, 64) in [0, 1] and (1797,) labels, in an order drawn by the seed."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(bunch.data / 16, dtype=torch.float32)[order], torch.tensor(bunch.target)[order]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def backward(loss: Tensor) -> int:
    """Gradients, and the FLOPs that they took."""
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


def run(x: Tensor, y: Tensor, args: argparse.Namespace, laws: dict[str, Any] | None) -> Result:
    torch.manual_seed(args.seed)
    model, draws = mlp(), torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    control = None if laws is None else AdaptiveScheduler(optimizer, model, lr=args.lr, **laws)
    frozen, flops = [], []
    for _ in range(args.steps):
        rows = torch.randint(HELD_OUT, len(x), (BATCH,), generator=draws)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        frozen.append(control.now.pct_frozen if control else 0.0)
        flops.append(backward(loss))
        optimizer.step()
        if control:
            control.step(loss.detach())
        optimizer.zero_grad()
    with torch.no_grad():
        final = F.cross_entropy(model(x[HELD_OUT:]), y[HELD_OUT:]).item()
        right = (model(x[:HELD_OUT]).argmax(-1) == y[:HELD_OUT]).float().mean().item()
    return Result(final, right, optimizer.param_groups[0]["lr"], frozen, flops)


def line(name: str, result: Result) -> str:
    at = max((i for i, share in enumerate(result.frozen) if share), default=0)  # the last step but for probes
    before, after, mean = result.flops[0] / 1e6, result.flops[at] / 1e6, sum(result.flops) / len(result.flops) / 1e6
    return (
        f"{name:<20}{result.accuracy:>9.2%}{result.loss:>12.5f}{result.lr:>9.4f}{result.frozen[at]:>13.1f}"
        f"{before:>9.2f}{after:>9.2f}{mean:>9.2f}{1 - mean / before:>9.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.1, help="of SGD, and where adaptive control starts")
    args = parser.parse_args()
    x, y = digits(args.seed)
    print(f"accuracy: on {HELD_OUT} images held out; pct_frozen: of the parameters, at the end, probes aside")
    print("before, after: MFLOP of a backward pass before freezing and at the end; mean, saved: of the whole run")
    print(
        f"{'run':<20}{'accuracy':>9}{'train loss':>12}{'lr':>9}{'pct_frozen':>13}"
        f"{'before':>9}{'after':>9}{'mean':>9}{'saved':>9}"
    )
    for name, laws in RUNS.items():
        print(line(name, run(x, y, args, laws)), flush=True)


if __name__ == "__main__":
    main()
