"""What each stabiliser of train.py is worth in train.py itself: on and off at equal FLOPs, seed by seed.

    python -m benchmarks.optim_trainer [--quick] [--budget B] [--seeds N] [--only NAME …] [--json FILE] [--plot FILE]

Each run is a process of its own as by hand, scored as by hand; needs prepared data (`python prepare.py`). A variant and
the plain script share a seed, so that differences are paired; below zero is better. What failed is kept as failed.
--json is written again after every seed: a long night that ends early leaves what it has.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
from typing import Any

from benchmarks import records
from benchmarks.train_bars import train_once

# 80 steps of the small machine's constants: more than the 50 losses that ARS looks back, and four windows of the
# adaptive control.
BUDGET, QUICK_BUDGET = "2e12flop", "2e11flop"
PLAIN = "plain"
SCALED = {"scaled": True, "relative_jitter": True, "on": "update"}
CONTROL = {"update_multiplier": {"poles": [0.7, 1.3], "loss_improvement_ema": 8.0, "bias": 0.0}}
VARIANTS: dict[str, dict[str, Any]] = {
    "policy: clip update_rms at 1": {"MATRIX_POLICY": {"clip": "update_rms"}},
    "policy: clip global_norm at 0.5": {"MATRIX_POLICY": {"clip": "global_norm", "clip_threshold": 0.5}},
    "policy: layerwise trust ratio": {"MATRIX_POLICY": {"trust": "layerwise"}},
    "policy: momentum after": {"MATRIX_POLICY": {"placement": "after"}},
    "policy: 3 steps of orthogonalisation": {"MATRIX_POLICY": {"ns_steps": 3}},
    "policy: without orthogonalisation": {"MATRIX_POLICY": {"orthogonalisation": "none"}},
    "policy: multiplier by loss improvement": {"MATRIX_POLICY": {"control": CONTROL}},
    "ARS, first published set": {"ARS_LAW": {}},
    "ARS, second published set": {
        "ARS_LAW": {"alpha": 2.0, "phi_min": 0.1, "jitter_scale": 0.01, "rho_threshold": 0.7}
    },
    "ARS on the update, scaled, alpha 0.1": {"ARS_LAW": {"alpha": 0.1} | SCALED},
    "ART, quantile 0.9, lambda 0.01": {"ART_LAW": {"quantile": 0.9}},
    "ART, quantile 0.9, lambda 1": {"ART_LAW": {"quantile": 0.9, "lam": 1.0}},
    "adaptive factor, 0.3 to 2": {"ADAPTIVE": {"lr": 1.0, "lr_bounds": [0.3, 2.0], "freeze_threshold": None}},
    "adaptive factor, 0.3 to 2, windows of 5": {
        "ADAPTIVE": {"lr": 1.0, "lr_bounds": [0.3, 2.0], "freeze_threshold": None, "window": 5}
    },
}
QUICK = ("ARS on the update, scaled, alpha 0.1",)


def run(name: str, seed: int, budget: str) -> dict[str, Any]:
    """One training of a variant; one that failed has no val_bpb but its last words."""
    try:
        row = {"variant": name} | train_once(seed, budget, VARIANTS.get(name, {}))
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout).strip().splitlines()
        row = {"variant": name, "seed": seed, "val_bpb": None, "failed": words[-1] if words else "no output"}
    print(f"seed {seed}  {name}: {row['val_bpb'] or row['failed']}", flush=True)
    return row


def differences(runs: list[dict[str, Any]], name: str, key: str = "val_bpb") -> list[float | None]:
    """Variant less plain, by seed; None where one of them failed."""
    plain = {row["seed"]: row.get(key) for row in runs if row["variant"] == PLAIN}
    pairs = [(row.get(key), plain[row["seed"]]) for row in runs if row["variant"] == name]
    return [None if a is None or b is None else a - b for a, b in pairs]


def summary(runs: list[dict[str, Any]], name: str) -> list[str]:
    """Mean difference and its σ, n; the mean's standard error; on how many seeds it is better; time against plain."""
    given = differences(runs, name)
    apart = [value for value in given if value is not None]
    times = [row["training_seconds"] for row in runs if row["variant"] == name and "training_seconds" in row]
    plain = [row["training_seconds"] for row in runs if row["variant"] == PLAIN and "training_seconds" in row]
    error = f"{statistics.stdev(apart) / math.sqrt(len(apart)):.4f}" if len(apart) > 1 else "-"
    better = f"{sum(value < 0 for value in apart)} of {len(given)}"
    slower = f"{statistics.median(times) / statistics.median(plain) - 1:+.0%}" if times and plain else "-"
    return [name, records.mean_sd(given, "+.4f"), error, better, slower]


def table(result: dict[str, Any]) -> str:
    runs = result["runs"]
    scores = records.mean_sd([row["val_bpb"] for row in runs if row["variant"] == PLAIN], ".4f")
    steps = next((row["num_steps"] for row in runs if row["variant"] == PLAIN and "num_steps" in row), math.nan)
    head = ("variant", "val_bpb less plain's, σ", "standard error", "better on", "training time")
    about = f"Plain at {result['budget']}: val_bpb {scores}, {steps:.0f} steps, n = {result['n']}.\n\n"
    return about + records.markdown(head, [summary(runs, name) for name in result["variants"]])


def draw(result: dict[str, Any], args: argparse.Namespace) -> None:
    """A point a seed, and the mean with two standard errors on each side."""
    names = list(reversed(result["variants"]))
    with records.drawing(args.plot, 1, 1, f"train.py with each switch, at {result['budget']}") as axes:
        axis = axes[0, 0]
        axis.figure.set_size_inches(9.0, 1.6 + 0.32 * len(names))
        for place, name in enumerate(names):
            apart = [value for value in differences(result["runs"], name) if value is not None]
            axis.scatter(apart, [place] * len(apart), color=records.COLOURS[5], marker="o", s=16)
            if len(apart) > 1:
                error = 2 * statistics.stdev(apart) / math.sqrt(len(apart))
                axis.errorbar(statistics.fmean(apart), place, xerr=error, fmt="D", color=records.COLOURS[2], ms=5)
        axis.axvline(0, color="#30363C", linewidth=1)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xlabel("val_bpb less the plain script's, same seed (bits per byte; below zero is better)")


def options() -> argparse.Namespace:
    parser = records.options(__doc__)
    parser.add_argument("--budget", default=BUDGET, help=f"of each run, default {BUDGET}")
    parser.add_argument("--seeds", type=int, default=5, help="so many, from 1")
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS], metavar="NAME", help="these variants")
    args = parser.parse_args()
    args.variants = args.only or [*VARIANTS]
    if args.quick:
        args.budget, args.seeds, args.variants = QUICK_BUDGET, 1, args.only or [*QUICK]
    return args


def main() -> None:
    args = options()
    settings = {name: VARIANTS[name] for name in args.variants}
    result = records.facts(budget=args.budget, variants=settings, n=args.seeds, runs=[])
    for seed in range(1, args.seeds + 1):
        result["runs"] += [run(name, seed, args.budget) for name in (PLAIN, *args.variants)]
        records.save(result, args.json)
    print("\n" + records.headline(result) + "\n" + table(result))
    draw(result, args)


if __name__ == "__main__":
    main()
