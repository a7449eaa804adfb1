"""What a session knows: its rows and what was tried. Read from disk when it begins, written before it is believed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.candidate import Repeat, Tried, repeat_of
from agent.cell import end_of
from agent.errors import StateError
from agent.folder import RUN_LOG, SessionFolder
from agent.ledger import Ledger, as_read, kept
from agent.recording import line, outcome
from agent.turns import Turn, turned
from agent.values import Candidate, Proposal, Record, Status


@dataclass(frozen=True)
class CutOff:
    """A trial without a row. candidate and commit are None when it was paid for and never came so far."""

    number: int
    proposal: Proposal | None
    cost_usd: float
    candidate: Candidate | None = None
    commit: str | None = None


class Memory:
    """records: all rows, oldest first. earlier: rows of earlier runs."""

    def __init__(self, folder: SessionFolder, say: Callable[[str], None], device: str) -> None:
        self.folder, self.say, self.device = folder, say, device
        self.ledger = Ledger(folder.ledger)
        self.records: list[Record] = []
        self._repeats: dict[Repeat, str] = {}
        self._turns: dict[tuple[str, Turn], str] = {}
        self._bases: dict[str, Mapping[str, str]] = {}  # sources of the commits that trials departed from
        self.earlier = 0

    def recall(self) -> list[CutOff]:
        """Read everything back, write the rows that a crash kept from the ledger; the trials that were cut off."""
        if dropped := self.ledger.repair():
            self.say(f"results.tsv: dropped an unfinished last line ({len(dropped)} characters)")
        self.records = list(self.ledger.records())
        rows = {record.trial: record for record in self.records}
        cut_off = []
        for number, folder in self.folder.trials():
            found, record = folder.candidate(), rows.get(number) or folder.record()
            if number not in rows and record is not None:
                self.append(record)
            if found is not None and record is not None:
                self._learn(*found, record)
            elif record is None and (found is not None or folder.cost_usd()):
                candidate, commit = found or (None, None)
                cut_off.append(CutOff(number, folder.proposal(), folder.cost_usd(), candidate, commit))
        self.earlier = len(self.records)
        return cut_off

    @property
    def tried(self) -> Tried:
        """What a proposal may not repeat."""
        return Tried(self._repeats, self._turns, self.device)

    def _learn(self, candidate: Candidate, commit: str, record: Record) -> None:
        self._repeats[repeat_of(candidate.digest, candidate.proposal)] = outcome(record)
        turn = turned(self._bases.get(candidate.parent, {}), candidate.sources, self.device)
        if turn is not None:
            self._turns[candidate.parent, turn] = outcome(record)
        if kept(record):
            self._bases[commit] = candidate.sources

    def last_crash(self) -> tuple[Proposal, str, int] | None:
        """Of a last row that is a crash: the proposal, the end of its log, and how many of its proposer's in a row."""
        crashes = list(itertools.takewhile(lambda record: record.status == Status.CRASH, reversed(self.records)))
        trial = self.folder.trial(crashes[0].trial) if crashes and crashes[0].trial else None
        proposal, runs = (trial.proposal(), trial.runs()) if trial is not None else (None, [])
        if proposal is None or not runs:
            return None
        own = itertools.takewhile(lambda record: record.proposer == proposal.proposer, crashes)
        return proposal, end_of(runs[-1] / RUN_LOG), len(list(own))

    def keeps(self) -> list[tuple[Candidate, str]]:
        """The kept candidates and their commits, the incumbent last. Raise StateError where a folder is gone."""
        return [self._kept(record.trial) for record in self.records if kept(record) and record.trial is not None]

    def _kept(self, number: int) -> tuple[Candidate, str]:
        if (found := self.folder.trial(number).candidate()) is None:
            raise StateError(f"session: expected the folder of trial {number}, found none; use another --tag")
        return found

    def record(self, record: Record, candidate: Candidate | None = None, commit: str = "") -> None:
        """The trial's own folder first: from there the ledger can be completed after a crash."""
        self.folder.trial(record.trial or 0).write_record(record)
        self.append(record)
        if candidate is not None:
            self._learn(candidate, commit, record)
        self.say(line(record))

    def append(self, record: Record) -> None:
        """Believed as it is written: a session that is killed and goes on must not judge by other digits."""
        self.ledger.append(record)
        self.records.append(as_read(record))

    def highest(self) -> int:
        """The largest number that a row or a folder has."""
        return max([record.trial or 0 for record in self.records] + [number for number, _ in self.folder.trials()])
