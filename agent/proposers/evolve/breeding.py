"""The next generation: founders at first, then the elite and children of those that did well. Pure.

Each child has a random generator of its own, seeded by session, generation and its place, so that a session that was
killed draws the same ones, whatever was drawn before.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from agent.proposers.evolve.archive import BAD, INCUMBENT, Archive, Generation, Individual
from agent.proposers.evolve.genome import Policy, told
from agent.proposers.evolve.mutations import CROSSOVER, crossover, mutate
from agent.proposers.evolve.tournament import fitness

CROSSED = 0.25  # share of children that have two parents
RIVALS = 2  # of which the fitter becomes a parent
ATTEMPTS = 50  # to draw somebody new
# What has to come out last if the evaluator is any good: steps ten times too long; raw gradients without momentum.
CONTROLS: Mapping[str, Policy] = {
    "update multiplier 10": Policy.of({"update_multiplier": 10.0}),
    "raw gradients without momentum": Policy.of({"orthogonalisation": "none", "momentum": 0.0}),
}


def founded(archive: Archive, reference: Policy, base: str) -> Archive:
    """With generation 0: the incumbent's policy, mutants of it, and those that are bad on purpose."""
    first = incumbent(reference, 0)
    bad = [Individual(policy, BAD, 0, change=name) for name, policy in CONTROLS.items() if policy != reference]
    archive = archive.joined((first, *bad))
    children = _children(archive, 0, {first.id: 0.0}, archive.preset.size)
    members = (*(one.id for one in children), *(one.id for one in bad))
    return archive.joined(children).begun(Generation(0, base, first.id, members))


def bred(archive: Archive, reference: Policy, base: str) -> Archive:
    """With one generation more: the fittest of the last one, tried anew, and children. reference: the incumbent's."""
    last = archive.generations[-1]
    fit, number = fitness(archive, last), last.number + 1
    archive = archive.joined((incumbent(reference, number),))
    elite = max((id for id in fit if id not in (last.reference, reference.id)), key=lambda id: fit[id], default=None)
    kept = () if elite is None else (elite,)
    children = _children(archive, number, fit, archive.preset.size - len(kept))
    members = (*kept, *(one.id for one in children))
    return archive.joined(children).begun(Generation(number, base, reference.id, members))


def incumbent(policy: Policy, generation: int) -> Individual:
    """What there is, whoever made it."""
    return Individual(policy, INCUMBENT, generation, change="the incumbent's policy")


def _children(archive: Archive, number: int, fit: Mapping[str, float], count: int) -> list[Individual]:
    """`count` of them, or fewer where nobody new is found, which nobody has been before."""
    children: dict[str, Individual] = {}
    for place in range(count):
        rng = random.Random(f"{archive.seed} generation {number} place {place}")
        for _ in range(ATTEMPTS):
            child = _child(archive, number, fit, rng)
            if child is not None and child.id not in archive.individuals and child.id not in children:
                children[child.id] = child
                break
    return list(children.values())


def _child(archive: Archive, number: int, fit: Mapping[str, float], rng: random.Random) -> Individual | None:
    one, other = _parent(archive, fit, rng), _parent(archive, fit, rng)
    if one != other and rng.random() < CROSSED:
        made = crossover(one.policy, other.policy, rng)
        change = "" if made is None else told(one.policy, made)
        return None if made is None else Individual(made, CROSSOVER, number, (one.id, other.id), change)
    operator, policy = mutate(one.policy, rng)
    return Individual(policy, operator, number, (one.id,), told(one.policy, policy))


def _parent(archive: Archive, fit: Mapping[str, float], rng: random.Random) -> Individual:
    rivals = [rng.choice(sorted(fit)) for _ in range(RIVALS)]
    return archive.individuals[max(rivals, key=lambda id: fit[id])]
