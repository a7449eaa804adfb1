"""Does AdaptiveScheduler find its way from a wrong learning rate? Against tuned schedules, over three optimizers.

    python -m benchmarks.optim_adaptive [--quick] [--text FILE] [--seeds N] [--steps N] [--json FILE] [--plot FILE]

SGD with momentum, AdamW, and Muon for matrices with AdamW for the rest. The learning rate of every schedule (constant,
cosine, warm-down) is tuned on a grid with a seed of its own; adaptive control starts from the tuned constant one. Then
all start at that rate times 0.1, 0.3, 1, 3, 10. The measure is the loss on held-out rows after the last step. Rules:
"trend" and "blend" decide once a window, "literal" at every step, as published: see where its rate ends. Runs go side
by side, a thread each. "in haste": short windows, long strides.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import charlm, records
from train import AdaptiveScheduler, Muon, step_with

WRONG = (0.1, 0.3, 1.0, 3.0, 10.0)
WARMDOWN, FLOOR = 0.5, 0.0  # share of the steps, and of the rate at the end
TUNING_SEED = 100
REST = 0.1  # AdamW's rate beside Muon's
BOUNDS = (1e-6, 100.0)  # of the controlled rate: so wide that only the rules hold it
Optimizers = list[torch.optim.Optimizer]
Trace = list[tuple[float, float]]  # learning rate and momentum of each step


def sgd(model: nn.Module, lr: float) -> Optimizers:
    return [torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)]


def adamw(model: nn.Module, lr: float) -> Optimizers:
    return [torch.optim.AdamW(model.parameters(), lr=lr)]


def muon(model: nn.Module, lr: float) -> Optimizers:
    """Matrices of the blocks by shape under Muon, the rest under AdamW, its rate in proportion."""
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    groups = [
        {"params": [p for p in matrices if p.shape == shape], "lr": lr, "momentum": 0.95, "weight_decay": 0.0}
        for shape in sorted({p.shape for p in matrices})
    ]
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(groups), torch.optim.AdamW(rest, lr=REST * lr, betas=(0.95, 0.999))]


# Each with its grid's middle and its momentum at the start.
BASES: dict[str, tuple[Callable[[nn.Module, float], Optimizers], float, float]] = {
    "SGD": (sgd, 0.1, 0.9),
    "AdamW": (adamw, 3e-3, 0.9),
    "Muon": (muon, 0.03, 0.95),
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress -> share of the rate
    "constant": lambda _progress: 1.0,
    "cosine": lambda progress: FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2,
    "warm-down": lambda progress: FLOOR + (1 - FLOOR) * min(1.0, (1 - progress) / WARMDOWN),
}
RULES: dict[str, dict[str, Any]] = {
    "trend": {},
    "trend, in haste": {"window": 5, "up": 1.2, "down": 0.5, "patience": 1, "cooldown": 2},
    "blend": {"rule": "blend"},
    "literal": {"rule": "literal"},
}
ROWS = (*SCHEDULES, *RULES)


def scheduled(base: str, lr: float, schedule: str, steps: int, trace: Trace) -> charlm.Make:
    def make(model: nn.Module) -> charlm.Update:
        optimizers = BASES[base][0](model, lr)
        groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]

        def update(loss: Tensor) -> None:
            share = SCHEDULES[schedule](len(trace) / steps)
            for group, full in groups:
                group["lr"] = full * share
            for optimizer in optimizers:
                step_with(optimizer, loss)
            trace.append((lr * share, BASES[base][2]))

        return update

    return make


def controlled(base: str, lr: float, rule: str, trace: Trace) -> charlm.Make:
    """Freezing and dither are off: it is the rate that is asked about."""

    def make(model: nn.Module) -> charlm.Update:
        build, _, momentum = BASES[base]
        optimizers = build(model, lr)
        control = AdaptiveScheduler(
            optimizers, model, lr=lr, momentum=momentum, lr_bounds=BOUNDS, freeze_threshold=None, **RULES[rule]
        )

        def update(loss: Tensor) -> None:
            trace.append((control.now.lr, control.now.momentum))
            for optimizer in optimizers:
                step_with(optimizer, loss)
            control.step(loss)

        return update

    return make


Job = tuple[str, str, float, int]  # base, row, learning rate, seed


def run(text: charlm.Text, args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """held: nats a character on held-out rows after the last step; None: diverged."""
    base, row, lr, seed = job
    trace: Trace = []
    make = scheduled(base, lr, row, args.steps, trace) if row in SCHEDULES else controlled(base, lr, row, trace)
    model = charlm.build(args.width, seed)
    curve = charlm.train(model, charlm.stream(text.train, seed), args.steps, make)
    held = charlm.row_losses(model, charlm.held_rows(text)).mean().item() if curve.finite else math.nan
    found = {"base": base, "row": row, "lr": records.known(lr, 8), "seed": seed, "held": records.known(held)}
    print(f"{base} {row} lr {lr:g} seed {seed}: {found['held']} in {curve.seconds:.1f} s", flush=True)
    final = dict(zip(("final_lr", "final_momentum"), (records.known(value, 8) for value in trace[-1]), strict=True))
    return found | final | {"rates": records.thinned([rate for rate, _ in trace], 10, 8)}


def tune(text: charlm.Text, args: argparse.Namespace, job: tuple[str, str]) -> dict[str, Any]:
    """Rates a factor of 3 apart around the middle; as long as the best is at an edge, one more beyond it."""
    base, schedule = job
    middle = BASES[base][1]
    tried: dict[float, float] = {}

    def score(power: float) -> float:
        held = run(text, args, (base, schedule, middle * 3**power, TUNING_SEED))["held"]
        return math.inf if held is None else held

    powers = [0.0] if args.quick else [-1.0, 0.0, 1.0]
    while powers:
        tried |= {power: score(power) for power in powers}
        best = min(tried, key=tried.__getitem__)
        edges = {min(tried): best - 1, max(tried): best + 1}
        powers = [edges[best]] if best in edges and not args.quick and abs(best) < 5 else []
    grid = [[records.known(middle * 3**power, 8), records.known(tried[power])] for power in sorted(tried)]
    return {"base": base, "row": schedule, "lr": middle * 3**best, "grid": grid}


def measure(text: charlm.Text, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    spawn = multiprocessing.get_context("spawn")  # forks of a process that has computed with torch may hang
    with ProcessPoolExecutor(os.cpu_count(), spawn, torch.set_num_threads, (1,)) as pool:
        tuned = list(pool.map(partial(tune, text, args), product(BASES, SCHEDULES)))
        best = {(found["base"], found["row"]): found["lr"] for found in tuned}
        cases = [*product(BASES, ROWS, args.wrong, range(1, args.seeds + 1))]
        jobs = [
            (base, row, best.get((base, row), best[base, "constant"]) * wrong, seed) for base, row, wrong, seed in cases
        ]
        runs = []
        for (_, _, wrong, seed), found in zip(cases, pool.map(partial(run, text, args), jobs), strict=True):
            kept = seed == 1 and wrong == 1  # the rates of one run are enough to see what a rule does
            runs.append({"wrong": wrong} | {k: v for k, v in found.items() if k != "rates" or kept})
    return {"tuned": tuned, "runs": runs}


def select(result: dict[str, Any], base: str, row: str, wrong: float) -> list[dict[str, Any]]:
    return [r for r in result["runs"] if (r["base"], r["row"], r["wrong"]) == (base, row, wrong)]


def table(result: dict[str, Any]) -> str:
    """Held-out losses by how wrong the rate began; last what became of the tuned one."""
    tuned = {(found["base"], found["row"]): found["lr"] for found in result["tuned"]}
    head = [
        "optimizer",
        "rate by",
        "tuned lr",
        *(f"× {wrong:g}" for wrong in result["wrong"]),
        "lr at the end of × 1",
        "momentum",
    ]
    rows = []
    for base in BASES:
        for row in ROWS:
            cells = [
                records.mean_sd([r["held"] for r in select(result, base, row, wrong)]) for wrong in result["wrong"]
            ]
            ends = [[r[key] for r in select(result, base, row, 1.0)] for key in ("final_lr", "final_momentum")]
            cells += [records.mean_sd(values, form) for values, form in zip(ends, (".2g", ".3f"), strict=True)]
            rate = tuned.get((base, row), tuned[base, "constant"])
            rows.append([base, row, f"{rate:.2g}", *cells])
    return records.markdown(head, rows)


def draw(result: dict[str, Any], args: argparse.Namespace) -> None:
    """A column for each optimizer. Above: the loss by how wrong the rate began. Below: rates from the tuned one."""
    with records.drawing(args.plot, 2, len(BASES), f"Adaptive control and schedules: {result['text']}") as axes:
        for column, base in enumerate(BASES):
            above, below = axes[:, column]
            for i, row in enumerate(ROWS):
                style = {"color": records.COLOURS[i], "linestyle": records.STYLES[i], "label": row, "linewidth": 1.3}
                points = [(w, r["held"]) for w in result["wrong"] for r in select(result, base, row, w) if r["held"]]
                means = [(w, [y for x, y in points if x == w]) for w in sorted({x for x, _ in points})]
                above.plot([w for w, _ in means], [sum(ys) / len(ys) for _, ys in means], **style)
                marks = {"color": records.COLOURS[i], "marker": records.MARKERS[i], "s": 12}
                above.scatter([w for w, _ in points], [y for _, y in points], **marks)
                rates = select(result, base, row, 1.0)[0]["rates"]
                below.plot([10 * at + 5 for at in range(len(rates))], rates, **style)
            above.set(xscale="log", xlabel="starting rate / tuned rate", ylabel="held-out loss (nats)")
            above.set_ylim(top=min(above.get_ylim()[1], math.log(charlm.VOCAB)))  # worse than guessing: not shown
            above.set_title(base, fontsize=10)
            below.set(yscale="log", xlabel="step", ylabel="learning rate, from × 1")
        axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left")


def options() -> argparse.Namespace:
    parser = records.options(__doc__)
    charlm.add_options(parser, steps=500, width=32)
    parser.add_argument("--wrong", type=float, nargs="+", default=list(WRONG), metavar="FACTOR")
    args = parser.parse_args()
    if args.quick:
        args.width, args.steps, args.seeds, args.wrong = 32, 45, 1, [1.0]
    if 1.0 not in args.wrong:
        parser.error(f"--wrong: expected 1 among the factors, found {args.wrong}")
    return args


def main() -> None:
    args = options()
    text = charlm.read(args.text)
    result = records.facts(text=text.name, steps=args.steps, width=args.width, wrong=args.wrong, n=args.seeds)
    result |= measure(text, args)
    records.save(result, args.json)
    print("\n" + records.headline(result) + "\n" + table(result))
    draw(result, args)


if __name__ == "__main__":
    main()
