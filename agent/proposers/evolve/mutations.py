"""Thirteen ways to change one thing about a policy, and a crossover of two. Pure: all chance is in the `rng` given.

A mutation answers None where it has nothing to change: what it would turn is switched off, or nothing would train
otherwise. It names itself, so that what each of them is worth can be counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import TypeAlias

from agent.proposers.evolve.genome import FIELDS, SENSORS, Fields, Policy, wired

Mutation: TypeAlias = Callable[[Policy, random.Random], Policy | None]
CROSSOVER = "crossover"
TRIES = 8  # of a mutation at one policy
NS_REACH, RATIO, BIAS, WEIGHT = (
    2,
    0.35,
    1.5,
    3.0,
)  # steps; log of a factor; two standard deviations of a sigmoid's input
MEMORY = 0.7  # log of the factor on 1 - β
BETAS = (0.8, 0.9, 0.95, 0.98, 0.99)  # where a second moment starts that was off
# Orders of magnitude that bring a sensor to about 1 at a small budget; what they really are is a run's own affair.
SCALES = {"loss_ema": 5.0, "loss_improvement_ema": 0.1, "grad_norm_ema": 0.1, "update_ratio_ema": 0.01}


def mutate(policy: Policy, rng: random.Random) -> tuple[str, Policy]:
    """One mutation, drawn from those that can change something here, with its name."""
    for name in rng.sample(list(MUTATIONS), len(MUTATIONS)):
        changed = MUTATIONS[name](policy, rng)
        if changed is not None:
            return name, changed
    raise AssertionError("the placement of momentum can always be changed")


def crossover(one: Policy, other: Policy, rng: random.Random) -> Policy | None:
    """Each field from one of the two, a law whole; None if that gives a parent again or does not fit together."""
    a, b = one.fields, other.fields
    child: Fields = {}
    for name in sorted({*a, *b} - {"control", "normalisers"}):
        child |= {name: source[name]} if name in (source := rng.choice((a, b))) else {}
    laws: Fields = {}
    for name in sorted({*one.control, *other.control}):
        laws |= {name: source[name]} if name in (source := rng.choice((one.control, other.control))) else {}
    return _made(child | {"control": laws, "normalisers": _both(a, b)}, one, other)


def _both(a: Fields, b: Fields) -> Fields:
    return {**b.get("normalisers", {}), **a.get("normalisers", {})}


def _made(fields: Mapping[str, object], *than: Policy) -> Policy | None:
    """The policy of these fields, unless train.py would refuse it or it is one of `than`."""
    try:
        made = Policy.of(fields)
    except ValueError:
        return None
    return None if made in than else made


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _step(name: str, draw: Callable[[Policy, random.Random], object]) -> Mutation:
    """A mutation that gives the plain field `name` what `draw` says."""

    def mutation(policy: Policy, rng: random.Random) -> Policy | None:
        return _retried(lambda: _made(policy.fields | {name: draw(policy, rng)}, policy))

    return mutation


def _retried(draw: Callable[[], Policy | None]) -> Policy | None:
    """A step may round to nothing or leave the bounds: drawn anew, TRIES times."""
    return next((made for _ in range(TRIES) if (made := draw()) is not None), None)


def _another(name: str) -> Mutation:
    """Another of the words that the field allows."""
    allowed = FIELDS[name][1]
    return _step(name, lambda policy, rng: rng.choice([word for word in allowed if word != policy.get(name)]))


def _scaled(value: float, rng: random.Random, allowed: tuple[float, ...], reach: float = RATIO) -> float:
    """By a factor of e^±reach, one standard deviation; from zero, anywhere below a quarter of the range."""
    moved = value * math.exp(rng.gauss(0.0, reach)) if value else rng.uniform(0.0, allowed[1] / 4)
    return min(max(moved, allowed[0]), allowed[1])


def _memory(value: float, rng: random.Random) -> float:
    """An averaging coefficient: by a factor on its distance from 1, as what it means is 1 / (1 - β) steps."""
    return min(max(1 - (1 - value) * math.exp(rng.gauss(0.0, MEMORY)), 0.0), 0.9999)


def _moved(actuator: str, value: float, rng: random.Random) -> float:
    """A value of this actuator near another."""
    if actuator == "beta2":
        return _memory(value, rng)
    if actuator.endswith("_mix"):
        return min(max(value + rng.gauss(0.0, RATIO), 0.0), 1.0)
    return _scaled(value, rng, FIELDS[actuator][1])


# ── the thirteen ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _trust_clamps(policy: Policy, rng: random.Random) -> Policy | None:
    name = rng.choice(("trust_low", "trust_high"))
    return _retried(lambda: _made(policy.fields | {name: _scaled(policy.get(name), rng, FIELDS[name][1])}, policy))


def _clip(policy: Policy, rng: random.Random) -> Policy | None:
    """Another kind, or another threshold of this one."""
    if policy.get("clip") != "none" and rng.random() < 0.5:
        return _step("clip_threshold", lambda now, rng: _scaled(now.get("clip_threshold"), rng, (0.01, 100)))(
            policy, rng
        )
    return _another("clip")(policy, rng)


def _multiplier(policy: Policy, rng: random.Random) -> float:
    return _scaled(policy.get("update_multiplier"), rng, FIELDS["update_multiplier"][1])


def _ns_steps(policy: Policy, rng: random.Random) -> int:
    return int(policy.get("ns_steps")) + rng.choice([n for n in range(-NS_REACH, NS_REACH + 1) if n])


def _beta2(policy: Policy, rng: random.Random) -> float | None:
    """Nearer to or further from 1; now and then off, and on again."""
    now = policy.get("beta2")
    if now is None:
        return rng.choice(BETAS)
    return None if rng.random() < 0.2 else _memory(now, rng)


def _control(policy: Policy, rng: random.Random) -> Policy | None:
    """All laws off; or one on, of one sensor, from half of the present value to it."""
    if policy.control:
        return _made({name: value for name, value in policy.fields.items() if name != "control"}, policy)
    actuator, sensor = rng.choice(wired(policy.fields)), rng.choice(SENSORS)
    now = float(policy.get(actuator))
    law = {"poles": [now / 2, now], sensor: rng.choice((-1, 1)) * rng.uniform(1.0, WEIGHT), "bias": rng.gauss(0, 1)}
    return _made(policy.fields | {"control": {actuator: law}} | _normalised(policy, sensor), policy)


def _normalised(policy: Policy, sensor: str) -> Fields:
    """A sensor that is read for the first time is brought to about 1, or its weight would mean nothing."""
    scales = {sensor: SCALES[sensor]} if sensor in SCALES else {}
    return {"normalisers": scales | policy.fields.get("normalisers", {})}


def _gate(policy: Policy, rng: random.Random, name: str, reach: float) -> Policy | None:
    """One coefficient of one law, moved."""
    if not policy.control:
        return None
    actuator = rng.choice(sorted(policy.control))

    def draw() -> Policy | None:
        law = policy.control[actuator]
        law[name] = min(max(law.get(name, 0.0) + rng.gauss(0.0, reach), -8.0), 8.0)
        more = {} if name == "bias" else _normalised(policy, name)
        return _made(policy.fields | {"control": policy.control | {actuator: law}} | more, policy)

    return _retried(draw)


def _gate_weight(policy: Policy, rng: random.Random) -> Policy | None:
    """Mostly of a sensor that is read already, now and then of any."""
    known = sorted({name for law in policy.control.values() for name in law} - {"poles", "bias"})
    return _gate(policy, rng, rng.choice(known if known and rng.random() < 0.7 else SENSORS), WEIGHT / 2)


def _pole(policy: Policy, rng: random.Random) -> Policy | None:
    if not policy.control:
        return None
    actuator, which = rng.choice(sorted(policy.control)), rng.randrange(2)

    def draw() -> Policy | None:
        law = policy.control[actuator]
        law["poles"][which] = _moved(actuator, law["poles"][which], rng)
        return _made(policy.fields | {"control": policy.control | {actuator: law}}, policy)

    return _retried(draw)


MUTATIONS: Mapping[str, Mutation] = {
    "momentum placement": _another("placement"),
    "trust ratio": _another("trust"),
    "trust clamps": _trust_clamps,
    "clip policy": _clip,
    "decay mode": _another("decay"),
    "update multiplier": _step("update_multiplier", _multiplier),
    "ns_steps": _step("ns_steps", _ns_steps),
    "second-moment beta2": _step("beta2", _beta2),
    "stateful control": _control,
    "gate bias": lambda policy, rng: _gate(policy, rng, "bias", BIAS),
    "gate weight": _gate_weight,
    "sensor EMA": _step("ema_beta", lambda policy, rng: _memory(policy.get("ema_beta"), rng)),
    "actuator pole": _pole,
}
