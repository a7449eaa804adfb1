"""What evolution can claim, step by step, as facts with figures; what was not measured says so. Pure.

1  the evaluator separates good from bad     where those that are bad on purpose came out in their screen
2  the gate follows the phase of training    correlation of a law's output with the share of the budget used
3  it beats the fixed baseline               steps and seconds to the reference's last loss, on one seed
4  it holds on other seeds and horizons      gains over the reference, stage by stage
5  more quality per compute when larger      not measured in a session: one size is what it trains
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import correlation, fmean
from typing import Any

from agent.proposers.evolve.archive import BAD, Archive, Generation, Result, Stage
from agent.proposers.evolve.genome import Policy
from agent.proposers.evolve.tournament import SHARES, fitness

Curve = Callable[[int], Sequence[Mapping[str, Any]]]
NOT_MEASURED = "not measured"
POINTS = 11  # of the budget, at which a gate is looked at
ELSEWHERE = "benchmarks/search/evolve_wins.py measures it for a policy"


def wins(archive: Archive, curve: Curve) -> dict[str, Any]:
    """One entry a step. curve: trial → rows of its curve.jsonl."""
    best = champion(archive)
    return {
        "1 separates good from bad": separation(archive),
        "2 gate follows the phase": gates(archive.individuals[best[1]].policy) if best else NOT_MEASURED,
        "3 beats the baseline": overtaking(archive, *best, curve) if best else NOT_MEASURED,
        "4 holds elsewhere": holding(archive, *best) if best else NOT_MEASURED,
        "5 larger models": f"{NOT_MEASURED}; {ELSEWHERE}",
    }


def champion(archive: Archive) -> tuple[Generation, str] | None:
    """Whoever was fittest in a promotion, and in which generation; the later one of equals. None without any."""
    found = [
        (gain, where.number, id)
        for where in archive.generations
        for id, gain in fitness(archive, where).items()
        if id != where.reference
    ]
    return (archive.generations[max(found)[1]], max(found)[2]) if found else None


def separation(archive: Archive) -> Any:
    """Ranks of the bad ones among all that were screened in their generation, 1 the best; a crash is last."""
    found = []
    for where in archive.generations:
        everybody = dict.fromkeys((where.reference, *where.members))
        screened = [one for id in everybody if (one := archive.screen(where, id)) is not None]
        order = sorted(screened, key=lambda one: -math.inf if one.score is None else archive.gain(one.score, 0.0))[::-1]
        found += [_ranked(archive, place, one, len(order)) for place, one in enumerate(order, 1) if _bad(archive, one)]
    return found or NOT_MEASURED


def _bad(archive: Archive, result: Result) -> bool:
    return archive.individuals[result.run.id].operator == BAD


def _ranked(archive: Archive, place: int, result: Result, of: int) -> dict[str, Any]:
    return {"policy": archive.individuals[result.run.id].change, "rank": place, "of": of, "score": result.score}


def gates(policy: Policy) -> Any:
    """Correlation of each law's output with the share of the budget, where that follows from the policy alone."""
    found: dict[str, Any] = {}
    for actuator, law in policy.control.items():
        found[actuator] = _phase(policy, law)
    return found or "no law in the best policy"


def _phase(policy: Policy, law: Mapping[str, Any]) -> float | str:
    if law.keys() - {"poles", "bias"} != {"step_fraction"}:
        return f"{NOT_MEASURED}: it reads sensors of a run; {ELSEWHERE}"
    phases = [n / (POINTS - 1) for n in range(POINTS)]
    shares = [gate(policy, law, {"step_fraction": phase}) for phase in phases]
    return round(correlation(phases, shares), 3) if len(set(shares)) > 1 else "constant"


def gate(policy: Policy, law: Mapping[str, Any], sensors: Mapping[str, float]) -> float:
    """How far a law opens at these sensors, [0, 1]."""
    scales = policy.fields.get("normalisers", {})
    total = sum(law.get(name, 0.0) * value / scales.get(name, 1.0) for name, value in sensors.items())
    return 1 / (1 + math.exp(-policy.get("sharpness") * (total + law.get("bias", 0.0))))


def overtaking(archive: Archive, where: Generation, id: str, curve: Curve) -> Any:
    """By seed: steps and seconds to the reference's last loss, against what the reference took to it."""
    theirs = {one.run.seed: one for one in archive.found(where, Stage.PROMOTION, where.reference)}
    found = []
    for one in archive.found(where, Stage.PROMOTION, id):
        other = theirs.get(one.run.seed)
        if other is None or one.trial is None or other.trial is None:
            continue
        fact = _overtaken(curve(one.trial), curve(other.trial))
        found += [{"seed": one.run.seed} | fact] if fact else []
    return found or f"{NOT_MEASURED}: no curves"


def _overtaken(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """None without curves; steps and seconds are None where that loss was not reached."""
    if not ours or not theirs:
        return None
    last = theirs[-1]
    row: Mapping[str, Any] = next((row for row in ours if row["loss"] <= last["loss"]), {})
    return {
        "loss": last["loss"],
        "steps": (row.get("step"), last["step"]),
        "seconds": (row.get("seconds"), last["seconds"]),
    }


def holding(archive: Archive, where: Generation, id: str) -> dict[str, Any]:
    """Gains over the reference at each horizon, in shares of the session's budget; how many seeds agree."""
    promotion = archive.gains(where, id)
    trial = next((one for one in archive.results if one.run.stage is Stage.TRIAL and one.run.id == id), None)
    return {
        "id": id,
        "screen": {"budget": SHARES[Stage.SCREEN], "gain": archive.screened_gain(where, id)},
        "promotion": {
            "budget": SHARES[Stage.PROMOTION],
            "gains": promotion,
            "mean": fmean(promotion) if promotion else None,
            "seeds better": f"{sum(gain > 0 for gain in promotion)} of {len(promotion)}",
        },
        "trial": "not tried" if trial is None else f"trial {trial.trial}: {trial.status}, {trial.score}",
        "learning rates": f"{NOT_MEASURED}; {ELSEWHERE}",
    }
