"""Whether a policy of train.py's Muon holds where evolution did not look: learning rates, horizons, a larger model.

    python -m benchmarks.search.evolve_wins [POLICY] [--quick] [--budget B] [--seeds N] [--json FILE]

POLICY: a literal as behind MATRIX_POLICY =, e.g. '{"ns_steps": 3}'. Each run is a process of its own as by hand, scored
as by hand; needs prepared data (`python prepare.py`). The policy and plain Muon share each seed and setting, so that
gains are paired; above zero is better. --json is written again after every pair. A larger model has the same budget in
FLOPs, hence fewer steps: the gain there is quality at equal compute.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
from pathlib import Path
from typing import Any

from agent.constants import find
from agent.proposers.evolve.genome import Policy
from benchmarks import records
from benchmarks.train_bars import train_once
from corpus.budget import Budget

TRAIN = Path(__file__).parents[2] / "train.py"
RATES, HORIZONS = (0.5, 1.0, 2.0), (0.5, 2.0)  # of the present learning rate; of the budget
BUDGET, QUICK_BUDGET = "2e12flop", "5e10flop"
FIRST_SEED = 301


def settings(quick: bool) -> dict[str, tuple[dict[str, Any], float]]:
    """Name → constants besides the policy, and the share of the budget."""
    now = {one.name: one.value for one in find(TRAIN.read_text(), "cpu")}
    rate, depth = now["MATRIX_LR"], now["DEPTH"]
    assert isinstance(rate, float)
    assert isinstance(depth, int)
    found: dict[str, tuple[dict[str, Any], float]] = {
        f"MATRIX_LR {rate * factor:g}": ({"MATRIX_LR": rate * factor}, 1.0) for factor in RATES
    }
    if quick:
        return {name: found[name] for name in list(found)[:1]}
    found |= {f"{share:g} x the budget": ({}, share) for share in HORIZONS}
    return found | {f"DEPTH {depth + 2}": ({"DEPTH": depth + 2}, 1.0)}


def score(policy: Policy, constants: dict[str, Any], seed: int, budget: str) -> float | None:
    """val_bpb, None for a run that failed."""
    try:
        return train_once(seed, budget, constants | {"MATRIX_POLICY": policy.fields})["val_bpb"]
    except subprocess.CalledProcessError:
        return None


def line(name: str, gains: list[float | None]) -> str:
    """Mean gain, its standard error, and on how many seeds it is one."""
    known = [gain for gain in gains if gain is not None]
    if not known:
        return f"{name:<24} no pair without a failure"
    error = f"± {statistics.stdev(known) / len(known) ** 0.5:.4f}" if len(known) > 1 else ""
    return f"{name:<24}{statistics.fmean(known):+.4f} {error}  better on {sum(g > 0 for g in known)} of {len(gains)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", nargs="?", default='{"ns_steps": 3}')
    parser.add_argument("--quick", action="store_true", help=f"one setting, one seed, {QUICK_BUDGET}")
    parser.add_argument("--budget", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    policy, seeds = Policy.of(ast.literal_eval(args.policy)), 1 if args.quick else args.seeds
    budget = Budget.parse(args.budget or (QUICK_BUDGET if args.quick else BUDGET))
    rows: list[dict[str, Any]] = []
    for name, (constants, share) in settings(args.quick).items():
        length = f"{budget.amount * share:.6g}{budget.unit}"
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            plain, ours = (score(one, constants, seed, length) for one in (Policy(), policy))
            gain = None if plain is None or ours is None else plain - ours
            rows.append({"setting": name, "seed": seed, "budget": length, "plain": plain, "policy": ours, "gain": gain})
            if args.json:
                records.write(args.json, {"policy": policy.fields, "rows": rows})
        print(line(name, [row["gain"] for row in rows if row["setting"] == name]), flush=True)


if __name__ == "__main__":
    main()
