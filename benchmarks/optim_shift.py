"""Does ARS help where the data changes at once? A small character model whose rows are reversed from 30 % on.

    python -m benchmarks.optim_shift [--quick] [--text FILE] [--rates LR …] [--seeds N] [--json FILE] [--plot FILE]

AdamW, plain and clipped; ARS on AdamW with both published sets, and with its factor on the update; and for each of
these AdamW with the learning rate that ARS's mean factor implies: what is left after that is more than a smaller step.
All of one seed and rate see the same model and rows. Survival: finite losses, and weights whose norm stays below 100,
or below twice what it was where that is more. Recovery: the first 20 steps after the shift whose mean loss is within
5 % of the 20 before it. The plot shows the loss and what ARS did, of the first seed.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import charlm, records
from train import ARS

SHIFT, SPAN, NEAR, LAST, NORM = 0.3, 20, 1.05, 50, 100.0
FIRST = {"alpha": 1.0, "phi_min": 0.3, "jitter_scale": 0.005, "rho_threshold": 0.75}
SECOND = {"alpha": 2.0, "phi_min": 0.1, "jitter_scale": 0.01, "rho_threshold": 0.7}
LAWS: dict[str, dict[str, Any]] = {
    "ARS 1.0, 0.3": FIRST,
    "ARS 2.0, 0.1": SECOND,
    "ARS 1.0, 0.3 on the update": FIRST | {"on": "update"},
}
METHODS = ("AdamW", "AdamW, clipped at 1", *LAWS, *(f"AdamW, lr × mean Φ of {name}" for name in LAWS))
Signals = list[list[float]]  # of each step: surprise, rho, psi, phi


def clipped(lr: float) -> charlm.Make:
    def make(model: nn.Module) -> charlm.Update:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

        def update(_loss: Tensor) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return update

    return make


def recorded(lr: float, law: dict[str, Any], signals: Signals) -> charlm.Make:
    """ARS that writes down what it did."""

    def make(model: nn.Module) -> charlm.Update:
        optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=lr), **law)

        def update(loss: Tensor) -> None:
            optimizer.step(loss)
            signals.append(optimizer.own.signals.tolist())

        return update

    return make


def reversing(draw: charlm.Draw, shift: int) -> charlm.Draw:
    return lambda step: draw(step) if step < shift else draw(step).flip(1)


def recovery(losses: list[float], shift: int) -> int | None:
    """Steps after the shift until the last SPAN of them are as good as before it, nearly; None: never."""
    goal = NEAR * statistics.fmean(losses[shift - SPAN : shift])
    ends = range(shift + SPAN, len(losses) + 1)
    return next((end - shift for end in ends if statistics.fmean(losses[end - SPAN : end]) <= goal), None)


def measured(curve: charlm.Curve, shift: int) -> dict[str, Any]:
    start, end = curve.norms
    return {
        "finite": curve.finite,
        "survived": curve.finite and end < max(NORM, 2 * start),
        "norm_start": records.known(start),
        "norm_end": records.known(end),
        "recovered_after": recovery(curve.losses, shift),
        "final_loss": records.known(statistics.fmean(curve.losses[-LAST:])) if curve.finite else None,
        "seconds": round(curve.seconds, 1),
        "losses": records.thinned(curve.losses),
    }


def mechanism(signals: Signals, law: dict[str, Any], whole: bool) -> dict[str, Any]:
    """What ARS did: means over the run, and where `whole` also means of every ten steps."""
    _, _, psi, phi = ([step[i] for step in signals] for i in range(4))
    jitter = [law["jitter_scale"] * (value < 0.5) for value in psi]
    means = {"phi": statistics.fmean(phi), "guarded": statistics.fmean(value < 1 for value in psi)}
    lines = {"psi_line": records.thinned(psi), "phi_line": records.thinned(phi), "jitter_line": records.thinned(jitter)}
    return means | (lines if whole else {})


def compare(text: charlm.Text, lr: float, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All METHODS from the same weights over the same rows."""
    shift, found = int(SHIFT * args.steps), []

    def run(method: str, rate: float, make: charlm.Make) -> dict[str, Any]:
        draw = reversing(charlm.stream(text.train, seed), shift)
        curve = charlm.train(charlm.build(args.width, seed), draw, args.steps, make)
        row = {"method": method, "lr": lr, "seed": seed, "used_lr": records.known(rate, 8)} | measured(curve, shift)
        print(f"lr {lr:g} seed {seed}  {method}: {row['final_loss']} in {row['seconds']} s", flush=True)
        found.append(row)
        return row

    run("AdamW", lr, charlm.plain(torch.optim.AdamW, lr=lr))
    run("AdamW, clipped at 1", lr, clipped(lr))
    for name, law in LAWS.items():
        signals: Signals = []
        row = run(name, lr, recorded(lr, law, signals))
        row |= mechanism(signals, law, seed == 1)
        rate = lr * row["phi"]
        run(f"AdamW, lr × mean Φ of {name}", rate, charlm.plain(torch.optim.AdamW, lr=rate))
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each rate and method; differences from AdamW are paired by seed."""
    head = ("lr", "method", "survived", "steps to recover", "final loss (nats)", "less AdamW's", "norm", "mean Φ")
    rows = []
    for lr in sorted({run["lr"] for run in runs}):
        of = {method: [run for run in runs if run["lr"] == lr and run["method"] == method] for method in METHODS}
        base = [run["final_loss"] for run in of["AdamW"]]
        rows += [[f"{lr:g}", method, *summary(found, base)] for method, found in of.items()]
    return records.markdown(head, rows)


def summary(found: list[dict[str, Any]], base: list[float | None]) -> list[str]:
    final = [run["final_loss"] for run in found]
    apart = [None if a is None or b is None else a - b for a, b in zip(final, base, strict=True)]
    return [
        f"{sum(run['survived'] for run in found)} of {len(found)}",
        records.mean_sd([run["recovered_after"] for run in found], ".0f"),
        records.mean_sd(final),
        records.mean_sd(apart, "+.3f"),
        f"{records.mean_sd([run['norm_start'] for run in found], '.0f')} → "
        f"{records.mean_sd([run['norm_end'] for run in found], '.0f')}",
        records.mean_sd([run.get("phi") for run in found], ".3f") if "phi" in found[0] else "",
    ]


def draw(result: dict[str, Any], args: argparse.Namespace) -> None:
    """A column for each rate: loss, Φ, and Ψ with the jitter below."""
    rates = sorted({run["lr"] for run in result["runs"]})
    title = f"ARS where the rows are reversed at step {int(SHIFT * result['steps'])}: {result['text']}, first seed"
    with records.drawing(args.plot, 4, len(rates), title) as axes:
        for column, lr in enumerate(rates):
            runs = {run["method"]: run for run in result["runs"] if run["lr"] == lr and run["seed"] == 1}
            line = partial(show, axes[:, column], runs)
            for i, name in enumerate(("AdamW", "AdamW, clipped at 1", *LAWS)):
                line(name, i)
            for axis, label in zip(axes[:, column], ("loss (nats)", "Φ", "Ψ", "jitter (σ of the noise)"), strict=True):
                axis.axvline(SHIFT * result["steps"], color="#9AA0A6", linewidth=1)
                axis.set(ylabel=label)
            axes[0, column].set_title(f"lr {lr:g}", fontsize=10)
            axes[-1, column].set_xlabel("step")
        axes[0, 0].legend(fontsize=7, frameon=False)


def show(axes: Any, runs: dict[str, dict[str, Any]], name: str, i: int) -> None:
    """Means of ten steps each; the plain ones have only a loss."""
    for axis, key in zip(axes, ("losses", "phi_line", "psi_line", "jitter_line"), strict=True):
        values = runs[name].get(key, ())
        style = {"color": records.COLOURS[i], "linestyle": records.STYLES[i], "linewidth": 1.2, "label": name}
        if values:
            axis.plot([10 * at + 5 for at in range(len(values))], values, **style)


def options() -> argparse.Namespace:
    parser = records.options(__doc__)
    charlm.add_options(parser, steps=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], metavar="LR")
    args = parser.parse_args()
    if args.quick:
        args.width, args.steps, args.seeds, args.rates = 32, 120, 1, args.rates[-1:]
    if args.steps * SHIFT < SPAN:
        parser.error(f"--steps: expected at least {int(SPAN / SHIFT) + 1}, found {args.steps}")
    return args


def main() -> None:
    args = options()
    text = charlm.read(args.text)
    result = records.facts(text=text.name, steps=args.steps, width=args.width, laws=LAWS, n=args.seeds)
    result["runs"] = [
        row for lr in args.rates for seed in range(1, args.seeds + 1) for row in compare(text, lr, seed, args)
    ]
    records.save(result, args.json)
    print("\n" + records.headline(result) + "\n" + table(result["runs"]))
    draw(result, args)


if __name__ == "__main__":
    main()
