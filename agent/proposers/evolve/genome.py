"""A policy as a value: the fields of train.py's MatrixPolicy, as a literal gives them. Pure.

The tables here repeat what MatrixPolicy allows, for the deciding side never imports torch; a test compares the two.
Two literals that train alike are one policy. So the canonical form leaves out what stands at its default and what
nothing reads: the clamps of a trust ratio that is off, the plain field of an actuator under control, the normaliser of
a sensor that no law uses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]
# Name → default, allowed: two numbers are an interval, anything else the values themselves.
FIELDS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "momentum": (None, (0, 0.999)),
    "nesterov": (True, (False, True)),
    "placement": ("before", ("before", "after")),
    "orthogonalisation": ("polar_express", ("polar_express", "none")),
    "ns_steps": (5, (1, 2, 3, 4, 5, 6, 7)),
    "orthogonal_mix": (1.0, (0, 1)),
    "beta2": (0.95, (0, 0.9999)),
    "trust": ("none", ("none", "layerwise")),
    "trust_low": (0.1, (0.01, 1)),
    "trust_high": (10.0, (1, 100)),
    "trust_mix": (1.0, (0, 1)),
    "update_multiplier": (1.0, (0, 10)),
    "clip": ("none", ("none", "update_rms", "global_norm")),
    "clip_threshold": (1.0, (0.01, 100)),
    "decay": ("cautious", ("none", "decoupled", "cautious")),
    "sharpness": (1.0, (0, 10)),
    "ema_beta": (0.9, (0, 0.9999)),
}
NULLABLE = ("momentum", "beta2")  # None: the schedule's; without
SENSORS = (
    *("loss_ema", "loss_improvement_ema", "grad_norm_ema", "update_ratio_ema"),
    *("grad_alignment_ema", "step_fraction"),
)
ACTUATORS = ("update_multiplier", "trust_mix", "clip_threshold", "beta2", "orthogonal_mix")
COEFFICIENT, NORMALISER = (-8, 8), (1e-8, 1e8)


@dataclass(frozen=True)
class Policy:
    """text: its canonical form as JSON. Equal texts train alike."""

    text: str = "{}"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Policy:
        """From any literal. ValueError, with the field, what is allowed and what was found, for one that train.py
        would refuse."""
        whole = {name: default for name, (default, _) in FIELDS.items()} | {"control": {}, "normalisers": {}}
        if strangers := fields.keys() - whole.keys():
            raise ValueError(f"expected fields of MatrixPolicy, found {', '.join(sorted(map(str, strangers)))}")
        whole |= fields
        _check(whole)
        return cls(json.dumps(_canonical(whole), sort_keys=True))

    @property
    def id(self) -> str:
        """12 hex digits, of the content alone."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def fields(self) -> Fields:
        """A copy, to be changed and made a policy again."""
        loaded: Fields = json.loads(self.text)
        return loaded

    @property
    def control(self) -> dict[str, dict[str, Any]]:
        """Actuator → law."""
        return dict(self.fields.get("control", {}))

    def get(self, name: str) -> Any:
        """A plain field; its default where nothing else is said."""
        return self.fields.get(name, FIELDS[name][0])


def wired(fields: Mapping[str, Any]) -> list[str]:
    """The actuators of what is switched on: only those may be controlled."""
    value = {name: default for name, (default, _) in FIELDS.items()} | dict(fields)
    off = {
        "trust_mix": value["trust"] == "none",
        "clip_threshold": value["clip"] == "none",
        "beta2": value["beta2"] is None,
        "orthogonal_mix": value["orthogonalisation"] == "none",
    }
    return [name for name in ACTUATORS if not off.get(name)]


def leaves(fields: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every plain value; poles are one."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def told(before: Policy, after: Policy) -> str:
    """What differs, for a person: `ns_steps 5 -> 3`."""
    old, new = (dict(leaves(policy.fields)) for policy in (before, after))
    names = [name for name in sorted(old | new) if _shown(name, old) != _shown(name, new)]
    return ", ".join(f"{name} {_shown(name, old)} -> {_shown(name, new)}" for name in names) or "unchanged"


def _shown(name: str, values: Mapping[str, Any]) -> str:
    absent = FIELDS[name][0] if name in FIELDS else "off"
    return str(values.get(name, absent))


def _check(whole: Mapping[str, Any]) -> None:
    for name, (_, allowed) in FIELDS.items():
        if not (whole[name] is None and name in NULLABLE):
            _within(name, whole[name], allowed)
    for name in ("control", "normalisers"):
        _expect(isinstance(whole[name], dict), f"{name} to be a dict", whole[name])
    for name, value in whole["normalisers"].items():
        _within("normaliser", name, SENSORS)
        _within(f"normaliser of {name}", value, NORMALISER)
    for actuator, law in whole["control"].items():
        _within("actuator (of what is switched on)", actuator, tuple(wired(whole)))
        _check_law(actuator, law)


def _check_law(actuator: str, law: Any) -> None:
    _expect(isinstance(law, dict), f"the law of {actuator} to be a dict", law)
    poles = law.get("poles")
    _expect(isinstance(poles, list | tuple) and len(poles) == 2, f"two poles of {actuator}", poles)
    for pole in poles:
        _within(f"pole of {actuator}", pole, FIELDS[actuator][1])
    for name in law.keys() - {"poles"}:
        _within(f"coefficient of {actuator}", name, ("bias", *SENSORS))
        _within(f"{name} of {actuator}", law[name], COEFFICIENT)


def _within(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    interval = len(allowed) == 2 and not isinstance(allowed[0], str | bool)
    inside = isinstance(value, int | float) and allowed[0] <= value <= allowed[1] if interval else value in allowed
    _expect(inside, f"{name} {'within' if interval else 'one of'} {allowed}", value)


def _expect(right: bool, what: str, found: Any) -> None:
    if not right:
        raise ValueError(f"MatrixPolicy: expected {what}, found {found!r}")


def _canonical(whole: Mapping[str, Any]) -> Fields:
    control = {actuator: _law(law) for actuator, law in whole["control"].items()}
    used = {name for law in control.values() for name in law}
    plain = {name: _number(name, whole[name]) for name in FIELDS if name not in _inert(whole)}
    kept: Fields = {name: value for name, value in plain.items() if value != FIELDS[name][0]}
    norms = {name: _short(value) for name, value in whole["normalisers"].items() if name in used}
    norms = {name: value for name, value in norms.items() if value != 1.0}
    return kept | ({"control": control} if control else {}) | ({"normalisers": norms} if norms else {})


def _inert(whole: Mapping[str, Any]) -> set[str]:
    """Fields that nothing reads as things stand."""
    off = set(whole["control"])
    off |= {"trust_low", "trust_high", "trust_mix"} if whole["trust"] == "none" else set()
    off |= {"clip_threshold"} if whole["clip"] == "none" else set()
    off |= {"ns_steps", "orthogonal_mix"} if whole["orthogonalisation"] == "none" else set()
    return off | (set() if whole["control"] else {"sharpness", "ema_beta"})


def _law(law: Mapping[str, Any]) -> Fields:
    weights = {name: _short(value) for name, value in law.items() if name != "poles"}
    return {"poles": [_short(pole) for pole in law["poles"]]} | {
        name: value for name, value in weights.items() if value
    }


def _number(name: str, value: Any) -> Any:
    whole = isinstance(value, bool | str) or value is None or name == "ns_steps"
    return (int(value) if name == "ns_steps" else value) if whole else _short(value)


def _short(value: float) -> float:
    """Four significant digits: what is beyond them is no other policy."""
    return float(f"{value:.4g}")
