"""Whether a policy of train.py's Muon holds where evolution did not look: learning rates, horizons, a larger model; and
whether its gates follow the phase of training.

    python -m benchmarks.search.evolve_wins [POLICY] [--quick] [--budget B] [--seeds N] [--json FILE]

POLICY: a literal as behind MATRIX_POLICY =, e.g. '{"ns_steps": 3}'. Each run is a process of its own as by hand, scored
as by hand; needs prepared data (`python prepare.py`). The policy and plain Muon share each seed and setting, so that
gains are paired; above zero is better. A larger model has the same budget in FLOPs, hence fewer steps: the gain there
is quality at equal compute. --json is written again after every setting.
"""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.constants import find
from agent.proposers.evolve.genome import Policy
from benchmarks import records
from benchmarks.train_bars import ROOT, TRAIN, env_in, train_once
from corpus.budget import Budget

RATES, HORIZONS, LAYERS = (0.5, 1.0, 2.0), (0.5, 2.0), 2  # of the learning rate; of the budget; more than there are
BUDGET, QUICK_BUDGET = "2e12flop", "3e11flop"
EXAMPLE = '{"control": {"update_multiplier": {"poles": (0.5, 1.0), "step_fraction": -8.0, "bias": 4.0}}}'
FIRST_SEED = 301
# Before TRAIN: note what every law says at every step, and what the share of the budget was.
GATES = """
import sys, json, prepare
prepare.SEED = int(sys.argv[1])
import train
noted, act = [], train.MatrixPolicy.actuate

def actuate(policy, sensors):
    values = act(policy, sensors)
    if sensors is not None:
        means = {name: values[name].mean().item() for name in policy.control}
        noted.append({"phase": sensors[0, train.SENSORS.index("step_fraction")].item(), **means})
    return values

train.MatrixPolicy.actuate = actuate
""" + TRAIN.replace("train.main()", "train.main()\njson.dump(noted, open(sys.argv[4], 'w'))")


def settings(quick: bool) -> dict[str, tuple[dict[str, Any], float]]:
    """Name → constants besides the policy, and the share of the budget."""
    now = {one.name: one.value for one in find((ROOT / "train.py").read_text(), "cpu")}
    rate, depth = now["MATRIX_LR"], now["DEPTH"]
    assert isinstance(rate, float)
    assert isinstance(depth, int)
    rates = {f"MATRIX_LR {rate * factor:g}": ({"MATRIX_LR": rate * factor}, 1.0) for factor in RATES}
    if quick:
        return dict(list(rates.items())[:1])
    horizons: dict[str, tuple[dict[str, Any], float]] = {f"{share:g} x the budget": ({}, share) for share in HORIZONS}
    return rates | horizons | {f"DEPTH {depth + LAYERS}": ({"DEPTH": depth + LAYERS}, 1.0)}


def score(policy: Policy, constants: dict[str, Any], seed: int, budget: str) -> float | None:
    """val_bpb, None for a run that failed."""
    try:
        return train_once(seed, budget, constants | {"MATRIX_POLICY": policy.fields})["val_bpb"]
    except subprocess.CalledProcessError:
        return None


def pair(policy: Policy, name: str, seed: int, where: tuple[dict[str, Any], float], budget: Budget) -> dict[str, Any]:
    """The policy and plain Muon on one seed."""
    length = f"{budget.amount * where[1]:.6g}{budget.unit}"
    plain, ours = (score(one, where[0], seed, length) for one in (Policy(), policy))
    gain = None if plain is None or ours is None else plain - ours
    return {"setting": name, "seed": seed, "budget": length, "plain": plain, "policy": ours, "gain": gain}


def gates(policy: Policy, seed: int, budget: str) -> dict[str, float | None]:
    """By actuator: the correlation of its mean over all matrices with the share of the budget; None if constant."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "gates.json"
        constants = json.dumps({"MATRIX_POLICY": policy.fields})
        command = [sys.executable, "-c", GATES, str(seed), str(time.time()), constants, str(out)]
        env = env_in(folder) | {"OVERNIGHT_BUDGET": budget}
        subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
        rows = json.loads(out.read_text())
    return {name: _correlation([row["phase"] for row in rows], [row[name] for row in rows]) for name in policy.control}


def _correlation(phases: list[float], values: list[float]) -> float | None:
    return statistics.correlation(phases, values) if len(set(values)) > 1 and len(set(phases)) > 1 else None


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Mean gain and its standard deviation, and on how many seeds it is one."""
    gains = [row["gain"] for row in rows if row["setting"] == name]
    better = sum(gain is not None and gain > 0 for gain in gains)
    return f"{name:<24}{records.mean_sd(gains, '+.4f')}  better on {better} of {len(gains)}"


def main() -> None:
    parser = records.options(__doc__ or "")
    parser.add_argument("policy", nargs="?", default=EXAMPLE)
    parser.add_argument("--budget", help=f"of one run ({BUDGET})")
    parser.add_argument("--seeds", type=int, default=3, help="in pairs")
    args = parser.parse_args()
    policy, seeds = Policy.of(ast.literal_eval(args.policy)), 1 if args.quick else args.seeds
    text = args.budget or (QUICK_BUDGET if args.quick else BUDGET)
    result = records.facts(policy=policy.text, budget=text, gates=gates(policy, FIRST_SEED, text), rows=[])
    print(f"gates against phase: {result['gates'] or 'no law in it'}", flush=True)
    for name, where in settings(args.quick).items():
        result["rows"] += [pair(policy, name, FIRST_SEED + n, where, Budget.parse(text)) for n in range(seeds)]
        records.save(result, args.json)
        print(line(name, result["rows"]), flush=True)


if __name__ == "__main__":
    main()
