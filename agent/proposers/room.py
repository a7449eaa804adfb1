"""How much memory a point of the constants will take, from what others took. Pure.

Memory is close to a product of powers of sizes, so its logarithm is a linear function of theirs. The exponents are
fitted by Bayesian linear regression (Bishop 2006, section 3.3): small by themselves, so that a constant that was never
turned counts for nothing, and as large as what was seen makes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from agent.constants import Value

FEWEST = 5  # trials without which nothing is said
EXPONENT = 0.5  # standard deviation of an exponent before anything is seen
NOISE = 0.1  # of a logarithm to base 2: seven percent


def predicted(known: Sequence[tuple[Mapping[str, Value], float]], point: Mapping[str, Value]) -> float | None:
    """Of `point`, in the unit of `known`: (constants, memory) of earlier trials. None from too few of them."""
    names = [name for name, value in point.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    rows = [(_logs(values, names), math.log2(memory)) for values, memory in known if memory > 0]
    rows = [(logs, memory) for logs, memory in rows if logs is not None]
    here = _logs(point, names)
    if len(rows) < FEWEST or here is None:
        return None
    inputs, targets = np.array([logs for logs, _ in rows]), np.array([memory for _, memory in rows])
    middle, level = inputs.mean(0), targets.mean()
    away = inputs - middle
    precision = away.T @ away / NOISE**2 + np.eye(len(names)) / EXPONENT**2
    exponents = np.linalg.solve(precision, away.T @ (targets - level) / NOISE**2)
    return float(2 ** (level + (np.array(here) - middle) @ exponents))


def _logs(values: Mapping[str, Value], names: Sequence[str]) -> list[float] | None:
    """To base 2; what is zero counts as a little. None where one of them is no number."""
    found = [values.get(name) for name in names]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    return [math.log2(max(abs(number), 1e-3)) for number in numbers] if len(numbers) == len(names) else None
