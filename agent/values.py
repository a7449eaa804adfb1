"""The values that flow through a session, in the order they come to be. All frozen; nothing is filled in later.

Edit → Proposal → Candidate → Trial (a Candidate and its Runs) → Verdict → Record (one row of results.tsv)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean
from typing import Protocol

from sandbox.metrics import Metrics
from sandbox.process import Execution

CATEGORIES = ("architecture", "optimizer", "schedule", "data", "loss", "hyperparameter", "simplification", "other")
WRITERS = {"llm", "command"}  # proposers that write code; the others set constants


class Status(StrEnum):
    """What became of a trial, as the ledger spells it."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"  # ended badly, timed out, out of memory
    REJECT = "reject"  # never ran, or its number did not survive the audit


class Purpose(StrEnum):
    SCREEN = "screen"
    CONFIRM = "confirm"


@dataclass(frozen=True)
class Edit:
    """Replace the one place where `search` stands in the file `path`; `search=None` replaces the whole file."""

    path: str
    search: str | None
    replace: str


@dataclass(frozen=True)
class Proposal:
    """An idea as edits against the incumbent.

    key: the proposer's own handle, given back to it in `repair` and `tell`. cost_usd: what this one exchange cost.
    insights: what a model wants to remember, in the place of what it wrote down before; "" leaves that as it is.
    """

    edits: tuple[Edit, ...]
    description: str
    hypothesis: str = ""
    category: str = "other"
    proposer: str = ""
    key: str = ""
    prompt: str = ""
    reply: str = ""
    cost_usd: float = 0.0
    budget: str | None = None
    seed: int | None = None
    purpose: Purpose = Purpose.SCREEN
    insights: str = ""


@dataclass(frozen=True)
class Candidate:
    """A proposal that applied, passed preflight and was not tried before: whole target files, ready to commit.

    digest: of the normalised sources (layout and comments do not count). parent: the incumbent's commit, 40 hex.
    """

    proposal: Proposal
    sources: Mapping[str, str]
    parent: str
    digest: str
    diff: str


@dataclass(frozen=True)
class Run:
    """One training of a candidate. `metrics` is None when it left no number; `failure` then says why.

    tflop: training compute counted by the harness, in 1e12 FLOPs. fraction: share of the budget that was used, [0, 1].
    stopped: its curve showed no hope.
    """

    seed: int
    budget: str
    execution: Execution
    metrics: Metrics | None
    failure: str = ""
    tflop: float | None = None
    fraction: float = 1.0
    stopped: bool = False


@dataclass(frozen=True)
class Audit:
    """What asking a model again, blindly, has shown.

    scored, blind: mean nats of the same `probes` places, as they were scored and as they are now; worst: the largest
    difference of both. held_bpb: score of the held-back split. problem: why there is no answer, "" when there is one.
    """

    probes: int
    scored: float | None
    blind: float | None
    worst: float | None
    held_bpb: float | None
    problem: str = ""
    seconds: float = 0.0


# What a job of a pool comes back with; None when it was called off.
Outcome = Run | Audit | None


@dataclass(frozen=True)
class Trial:
    """A candidate being tried: its number in the session, its commit (40 hex) and the runs so far, oldest first.

    The first run is on the session's seed, all others are on fresh ones.
    """

    number: int
    commit: str
    candidate: Candidate
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What runs of candidate and incumbent on the same fresh seeds have shown, in the metric's unit.

    gains: how much better the candidate is, by seed. bound: what the gain is at least, at the level of that look. sd,
    dof: of one seed's difference, pooled, and its degrees of freedom. score: mean of the candidate's runs there. value:
    what follows for its row: the incumbent's, less the gain without the luck in it; scores of unlike seeds do not
    compare. conceded: what
    was given away for simplicity and not won back since, this trial included.
    """

    gains: Mapping[int, float]
    bound: float
    sd: float
    dof: float
    score: float
    value: float
    conceded: float = 0.0

    @property
    def gain(self) -> float:
        return fmean(self.gains.values())


@dataclass(frozen=True)
class Verdict:
    status: Status
    reason: str
    finding: Finding | None = None


@dataclass(frozen=True)
class RunAgain:
    """The judge cannot decide yet: train once more with this seed, the candidate or the incumbent it is up against."""

    seed: int
    reason: str
    incumbent: bool = False


@dataclass(frozen=True)
class Record:
    """One row of results.tsv. None is unknown, never zero.

    memory_gb: peak, GiB. tokens_M: millions of training tokens. n, sigma: how many seeds its gain over its parent is a
    mean of, and the standard deviation of those gains; 1 where there was one run. fraction: share of the budget spent.
    total_seconds: from start of process to score, of all its runs.
    """

    commit: str | None
    val_bpb: float | None
    memory_gb: float | None
    status: str
    description: str
    trial: int | None = None
    parent: str | None = None
    proposer: str = ""
    category: str = ""
    budget: str = ""
    seed: int | None = None
    n: int | None = None
    sigma: float | None = None
    fraction: float | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    tokens_M: float | None = None
    tflop: float | None = None
    cost_usd: float | None = None
    hardware: str = ""
    slot: str = ""
    torch: str = ""
    data: str = ""
    reason: str = ""


@dataclass(frozen=True)
class History:
    """What a proposer may look at: every row so far, the incumbent and its sources, and what a human or a crash said.

    near: trial → diff of near misses worth another look, none while there is progress.
    sources: path → text of the incumbent's target files. failure: tail of the last crash's log, "" when none.
    insights: what models have written down for themselves. device: the type that runs train on, cpu, cuda or mps.
    direction: whether min or max of the metric is better.
    """

    records: tuple[Record, ...]
    incumbent: Record | None
    sources: Mapping[str, str]
    failure: str = ""
    guidance: str = ""
    fixed: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    direction: str = "min"
    near: Mapping[int, str] = field(default_factory=dict)
    insights: str = ""


class Proposer(Protocol):
    """Makes proposals. Keeps its state on disk, so that a killed session goes on where it was."""

    name: str

    def ask(self, history: History, in_flight: Sequence[Proposal]) -> Proposal:
        """Raise ProposalError (with what was salvaged) for a bad reply, ProviderError when nobody answers, Waiting when
        what follows depends on proposals of its own that are in flight."""
        ...

    def repair(self, proposal: Proposal, problem: str) -> Proposal | None:
        """A mended proposal in the same conversation, or None if this proposer does not repair."""
        ...

    def tell(self, proposal: Proposal, record: Record) -> None: ...
