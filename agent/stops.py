"""When a session begins no further trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.values import Record, Status

REJECTS_IN_A_ROW = 25  # a proposer that never makes a trial would otherwise run, and cost, for ever


@dataclass(frozen=True)
class Stop:
    """experiments: trials besides the baseline, rejects not counted, of the whole tag. until: wall clock, local."""

    experiments: int | None = None
    until: datetime | None = None
    max_usd: float | None = None

    def reason(self, records: Sequence[Record], in_flight: int, now: datetime, since: int = 0) -> str | None:
        """Why to begin nothing more, None to go on. since: how many of the rows are of earlier runs of the session."""
        ran = experiments(records) + in_flight
        if self.experiments is not None and ran >= self.experiments:
            return f"{ran} experiments done"
        if self.until is not None and now >= self.until:
            return f"it is {now:%H:%M}"
        if not self.affords(spent(records)):
            return f"${spent(records):.2f} spent"
        last = records[since:][-REJECTS_IN_A_ROW:]
        if len(last) == REJECTS_IN_A_ROW and all(record.status == Status.REJECT for record in last):
            return f"{REJECTS_IN_A_ROW} proposals in a row were rejected; see `overnight history`"
        return None

    def affords(self, dollars: float) -> bool:
        """Whether one more request may be made after `dollars` were spent."""
        return self.max_usd is None or dollars < self.max_usd


def experiments(records: Sequence[Record]) -> int:
    """Trials that ran, besides the baseline."""
    return sum(record.status != Status.REJECT and record.trial != 0 for record in records)


def spent(records: Sequence[Record]) -> float:
    """Dollars charged in these rows."""
    return sum(record.cost_usd or 0.0 for record in records)
