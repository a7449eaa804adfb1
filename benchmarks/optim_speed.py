"""What ARS costs: its share of a training step at 50 M parameters, beside a twin that loops and asks for numbers.

    python -m benchmarks.optim_speed [--quick] [--device cuda] [--rounds N] [--json FILE] [--plot FILE]

Two measurements in one process, everything in turn, so that all see the same machine. The optimizer alone: fixed
gradients, seconds of `step` with ARS less those of the base. Whole steps: forward, backward and `step`; there a share
of a percent drowns in the noise of a busy machine, so the bar is judged by the first over the median of a whole plain
step. The twin is the law over Python lists, `.item()`, and a loop over the parameters. "Guard closed" is the step that
also draws noise, for losses whose surprises repeat. On a GPU what is timed ends with a wait for the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import records
from tests.twins import ResonanceTwin
from train import ARS

BARS = {"cuda": 0.01, "cpu": 0.02}
WIDTH, LENGTH = 768, 256
TOKENS = {"cuda": 32_768, "cpu": 2_048}  # a step; more would make the share smaller
PLAIN = "AdamW"
LAWS: dict[str, dict[str, Any]] = {
    "ARS": {},
    "ARS, no jitter": {"jitter_scale": 0.0},
    "ARS, scaled, relative jitter": {"scaled": True, "relative_jitter": True},
    "ARS on the update": {"on": "update"},
    "ARS, guard closed": {"window": 8},
}
CLOSED = "ARS, guard closed"
TWIN = "slow twin"
NAMES = (PLAIN, *LAWS, TWIN)


def stack(layers: int, width: int) -> nn.Module:
    """Transformer layers, about 12 · width² weights each."""
    shape = {"d_model": width, "nhead": width // 64, "dim_feedforward": 4 * width, "dropout": 0.0}
    return nn.Sequential(
        *(nn.TransformerEncoderLayer(**shape, batch_first=True, norm_first=True) for _ in range(layers))
    )


class Slow:
    """ARS's law as one would first write it: host numbers, one parameter at a time."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.law = base, ResonanceTwin()

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        _, _, psi, phi = self.law.step(loss.item())
        for group in self.base.param_groups:
            for p in group["params"]:
                if psi < 0.5:
                    p.grad += 0.005 * torch.randn_like(p)
                p.grad *= phi
        self.base.step()


@dataclass
class Bench:
    """A model, a batch of noise, and a way to step by each name; all share one AdamW, so that its state is warm."""

    model: nn.Module
    inputs: Tensor  # (B, T, C)
    steps: dict[str, Callable[[Tensor], Any]]

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def backward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.model(self.inputs).float().square().mean()
        loss.backward()
        return loss.detach()

    def whole(self, name: str, times: int) -> float:
        """Seconds of a training step; the mean of `times` in a row, which a GPU may queue."""
        began = self.clock()
        for _ in range(times):
            self.model.zero_grad()
            self.steps[name](self.backward())
        return round((self.clock() - began) / times, 7)

    def alone(self, name: str, loss: Tensor, grads: list[Tensor]) -> float:
        """Seconds of the optimizer's part on the same gradients, which ARS changes in place."""
        torch._foreach_copy_([p.grad for p in self.model.parameters()], grads)
        began = self.clock()
        self.steps[name](loss)
        return round(self.clock() - began, 7)


def build(args: argparse.Namespace) -> Bench:
    torch.manual_seed(1)
    model = stack(args.layers, args.width).to(args.device)
    inputs = torch.randn(args.tokens // LENGTH, LENGTH, args.width, device=args.device)
    base = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    steps: dict[str, Callable[[Tensor], Any]] = {PLAIN: lambda _loss: base.step()}
    steps |= {name: ARS(base, **law).step for name, law in LAWS.items()}
    return Bench(model, inputs, steps | {TWIN: Slow(base).step})


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds by kind and name, a number a round. In every other round the order is turned round."""
    names = [name for name in NAMES if name in (PLAIN, "ARS", TWIN)]
    loss = bench.backward()
    grads = [p.grad.clone() for p in bench.model.parameters()]
    losses = loss + 0.01 * torch.randn(args.rounds + 12, device=bench.device)  # a gate that is not always open
    swinging = loss + 0.01 * torch.tensor([0.0, 1.0, 0.0, -1.0], device=bench.device)  # surprised every other time
    alone: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn, now in enumerate(losses):
        for name in NAMES[:: 1 if turn % 2 else -1]:
            alone[name].append(bench.alone(name, swinging[turn % 4] if name == CLOSED else now, grads))
    whole: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(args.whole_rounds + 1):
        for name in names[:: 1 if turn % 2 else -1]:
            whole[name].append(bench.whole(name, 10 if bench.device.type == "cuda" else 1))
    cut = {"alone": {name: values[12:] for name, values in alone.items()}}  # warm by then
    return cut | {"whole": {name: values[1:] for name, values in whole.items()}}


def shares(result: dict[str, Any]) -> dict[str, list[float]]:
    """What a step costs more than AdamW's, round by round, over the median of a whole plain step."""
    alone, step = result["alone"], statistics.median(result["whole"][PLAIN])
    return {
        name: [(a - b) / step for a, b in zip(alone[name], alone[PLAIN], strict=True)]
        for name in alone
        if name != PLAIN
    }


def cells(values: list[float], form: str) -> list[str]:
    """Median, and quartiles where there are enough."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 3 else (min(values), 0, max(values))
    return [f"{statistics.median(values):{form}}", f"{low:{form}} – {high:{form}}", str(len(values))]


def table(result: dict[str, Any]) -> str:
    bar = BARS[result["device"]]
    about = f"{result['parameters'] / 1e6:.1f} M parameters, {result['tokens']} tokens a step, {result['device']}.\n\n"
    head = ("extra of a step, over a plain step", "median", "quartiles", "n", f"at most {bar:.0%}")
    rows = [
        [name, *cells(values, ".2%"), "yes" if statistics.median(values) <= bar else "no"]
        for name, values in shares(result).items()
    ]
    times = [
        [f"{name}, {kind}", *cells([1000 * value for value in values], ".4g")]
        for kind, found in (("step alone", result["alone"]), ("whole step", result["whole"]))
        for name, values in found.items()
    ]
    return about + records.markdown(head, rows) + "\n\n" + records.markdown(("ms", "median", "quartiles", "n"), times)


def draw(result: dict[str, Any], args: argparse.Namespace) -> None:
    """A point a round, a line at the median; and the bar."""
    found, bar = shares(result), BARS[result["device"]]
    title = f"ARS's share of a training step, {result['parameters'] / 1e6:.0f} M parameters, {result['device']}"
    with records.drawing(args.plot, 1, 1, title) as axes:
        axis = axes[0, 0]
        axis.axvline(100 * bar, color=records.COLOURS[4], linestyle="--", label=f"bar, {bar:.0%}")
        points = [(100 * value, place) for place, values in enumerate(found.values()) for value in values]
        middles = [100 * statistics.median(values) for values in found.values()]
        axis.scatter(*zip(*points, strict=True), s=10, color=records.COLOURS[5], label="a round")
        axis.scatter(middles, range(len(found)), s=60, marker="D", color=records.COLOURS[2], label="median")
        axis.set_yticks(range(len(found)), list(found), fontsize=8)
        axis.set_xlabel("seconds more than AdamW's step, over a whole step (%)")
        axis.legend(fontsize=7, frameon=False)


def options() -> argparse.Namespace:
    parser = records.options(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=40, help="of the optimizer alone")
    parser.add_argument("--whole-rounds", type=int, default=5, help="of whole steps")
    parser.add_argument("--tokens", type=int, help=f"a step, default {TOKENS}")
    args = parser.parse_args()
    args.layers, args.width = 7, WIDTH
    args.tokens = args.tokens or TOKENS[args.device]
    if args.quick:
        args.layers, args.width, args.tokens, args.rounds, args.whole_rounds = 4, 256, 1024, 10, 3
    if args.tokens % LENGTH:
        parser.error(f"--tokens: expected a multiple of {LENGTH}, found {args.tokens}")
    return args


def main() -> None:
    args = options()
    torch.set_float32_matmul_precision("high")
    bench = build(args)
    count = sum(p.numel() for p in bench.model.parameters())
    result = records.facts(device=args.device, parameters=count, tokens=args.tokens, n=args.rounds)
    result |= measure(bench, args)
    records.save(result, args.json)
    print(records.headline(result) + "\n" + table(result))
    draw(result, args)


if __name__ == "__main__":
    main()
