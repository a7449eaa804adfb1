"""The archive for a person: who comes from whom, what the operators were worth, what can be claimed. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from agent.proposers.evolve.archive import Archive, Individual, Stage
from agent.proposers.evolve.operators import Operator, operators


def as_text(archive: Archive, wins: Mapping[str, Any]) -> str:
    """The page that `overnight lineage` prints. wins: see agent.proposers.evolve.wins."""
    preset = archive.preset
    head = (
        f"{preset.name}: generation {len(archive.generations)} of {preset.generations}, "
        f"{len(archive.individuals)} policies, {len(archive.results)} runs"
    )
    table = [_line(one) for one in operators(archive)]
    claims = [f"{name}: {fact if isinstance(fact, str) else json.dumps(fact)}" for name, fact in wins.items()]
    return "\n".join([head, "", *tree(archive), "", HEADING, *table, "", *claims])


def tree(archive: Archive) -> list[str]:
    """One line a policy, below its first parent and further in than it."""
    children: dict[str, list[Individual]] = defaultdict(list)
    for one in archive.individuals.values():
        children[one.parents[0] if one.parents else ""].append(one)

    def below(id: str, depth: int) -> Iterator[str]:
        for one in children[id]:
            yield "  " * depth + _person(archive, one)
            yield from below(one.id, depth + 1)

    return list(below("", 0))


def _person(archive: Archive, one: Individual) -> str:
    also = f" and {one.parents[1]}" if len(one.parents) > 1 else ""
    return f"{one.id}  g{one.generation}  {one.operator}: {one.change}{also}{_scores(archive, one.id)}"


def _scores(archive: Archive, id: str) -> str:
    """By stage; a mean where it ran on several seeds, which compare within one generation only."""
    parts = []
    for stage in Stage:
        runs = [one for one in archive.results if one.run.id == id and one.run.stage is stage]
        scores = [one.score for one in runs if one.score is not None]
        bad = f" ({len(runs) - len(scores)} failed)" if len(scores) < len(runs) else ""
        kept = ", kept" if stage is Stage.TRIAL and any(one.status == "keep" for one in runs) else ""
        value = f"{fmean(scores):.6f}" if scores else "-"
        parts += [f"{stage} {value} (n={len(scores)}){bad}{kept}"] if runs else []
    return f"  [{'; '.join(parts)}]" if parts else ""


HEADING = f"{'operator':<22}{'applied':>8}{'promoted':>9}{'survived':>9}{'won':>5}{'mean gain':>12}{'best':>12}"


def _line(one: Operator) -> str:
    mean, best = (f"{'-':>12}" if gain is None else f"{gain:>+12.6f}" for gain in (one.mean, one.best))
    return f"{one.name:<22}{one.applied:>8}{one.promoted:>9}{one.survived:>9}{one.won:>5}{mean}{best}"
