"""Where a search is to turn when it repeats itself: what a model is told, and what is refused. Pure.

Only proposers that write code are steered. A search over constants has its own way to spread out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from agent.ledger import comparable, incumbent, kept
from agent.turns import Turn, told
from agent.values import CATEGORIES, WRITERS, Proposal, Record, Status

IN_A_ROW = 3  # proposals of one category
PLATEAU = 8  # trials without a keep
NEAR = 10
KINDS = [name for name in CATEGORIES if name != "other"]  # which is also what is written where none was named


def refused(proposal: Proposal, turn: Turn | None, records: Sequence[Record]) -> str:
    """Why this is not what is wanted now, "" if it is. turn: the constants that it turns, None if it does more."""
    if proposal.proposer not in WRITERS:
        return ""
    if (worn := worn_out(records)) and proposal.category == worn:
        return f"the last {IN_A_ROW} proposals were all of category {worn}; propose one of {_others(worn)}"
    if (stuck := plateau(records)) and turn is not None and len(turn) == 1:
        return f"no gain in {stuck} trials, and this turns one constant ({told(turn)}); {STRUCTURAL}"
    return ""


STRUCTURAL = "change the structure, start from a near miss, or combine two of them"


def advice(records: Sequence[Record], best: Record | None, direction: str) -> list[str]:
    """What to tell a model before it proposes; [] while all goes well."""
    lines = []
    if worn := worn_out(records):
        lines.append(f"The last {IN_A_ROW} proposals were all of category {worn}. Propose one of {_others(worn)}.")
    if stuck := plateau(records):
        near = [str(record.trial) for record in near_misses(records, best, direction)[:2]]
        ways = ["change the structure (architecture, loss, data, the optimizer's mathematics), not one constant more"]
        ways += [f"start from the near miss of trial {near[0]} and mend what held it back"] if near else []
        ways += [f"combine those of trials {near[0]} and {near[1]}"] if len(near) > 1 else []
        lines.append(f"No gain in the last {stuck} trials. Do one of these: {'; '.join(ways)}.")
    return lines


def worn_out(records: Sequence[Record]) -> str:
    """The category of all of the last ideas that a model had and that left a number, "" where they differ.

    A crash and its repairs are one idea, which is not over yet.
    """
    last = [record.category for record in records if record.proposer in WRITERS and _ended(record)][-IN_A_ROW:]
    return last[0] if len(last) == IN_A_ROW and len(set(last)) == 1 and last[0] in KINDS else ""


def plateau(records: Sequence[Record]) -> int:
    """Trials since the last keep, 0 while they are fewer than PLATEAU. What ran on another budget could not be kept."""
    best = incumbent(records)
    later = itertools.takewhile(lambda record: not kept(record), reversed(records))
    since = sum(_ran(record) and (best is None or record.budget == best.budget) for record in later)
    return since if since >= PLATEAU else 0


def near_misses(records: Sequence[Record], best: Record | None, direction: str) -> list[Record]:
    """Discarded with the best values that compare with the incumbent's, the best first, NEAR at most."""
    found = [record for record in records if record.status.lower() == Status.DISCARD and record.val_bpb]
    found = [record for record in found if best is None or comparable(record, best)]
    return sorted(found, key=lambda record: record.val_bpb or 0.0, reverse=direction == "max")[:NEAR]


def _ran(record: Record) -> bool:
    return record.status.lower() != Status.REJECT and record.trial != 0


def _ended(record: Record) -> bool:
    return _ran(record) and record.status.lower() != Status.CRASH


def _others(category: str) -> str:
    return ", ".join(name for name in KINDS if name != category)
