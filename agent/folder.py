"""Where a session's files are, and how they are read and written. The one place that knows.

.overnight/<tag>/  results.tsv session.json guidance.md insights.md lock proposers/<name>/ trials/<n>/ noise/<seed>/
                   (guidance.md is written by a human, insights.md by the model; a human may edit both)
trials/<n>/        proposal.json prompt.txt reply.txt candidate.py diff.patch smoke.json finding.json record.json
                   runs/<k>/ seeds.json (of a kept one: those it meets challengers on)
                   defence/<seed>/ (runs of a kept candidate against challengers, on their seeds)
runs/<k>/          run.log curve.jsonl execution.json metrics.json model.safetensors (kept for keeps only) work/
                   pruning.json (of a first run: what looks at its curve have come to)
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.errors import StateError, because
from agent.values import Audit, Candidate, Edit, Finding, Proposal, Purpose, Record
from sandbox.workspace import write_aside

CHECKPOINT = "model.safetensors"
CONFIG = "config.json"  # of the model in the checkpoint, and what it says of itself
RUN_LOG = "run.log"
SHAPES_LOG = "shapes.log"
SPEC = "trial.json"  # of a run: what was asked for
METRICS = "metrics.json"
CURVE = "curve.jsonl"
CANDIDATE = "candidate.json"
EXECUTION = "execution.json"  # of a run: how it ended, and what the trusted side measured
SCORED = "nats.npy"  # of every scored token, for the audit


def sessions(root: Path) -> list[str]:
    """Tags of the sessions of this repository, the one used last first."""
    found = [path.parent for path in (root / ".overnight").glob("*/session.json")]
    return [path.name for path in sorted(found, key=_last_used, reverse=True)]


def _last_used(session: Path) -> float:
    """Seconds since the epoch. Every run writes the lock."""
    lock = session / "lock"
    return (lock if lock.exists() else session).stat().st_mtime


@dataclass(frozen=True)
class TrialFolder:
    path: Path

    def run(self, number: int) -> Path:
        return self.path / "runs" / str(number)

    def runs(self) -> list[Path]:
        return _numbered(self.path / "runs")

    def curve(self) -> list[dict[str, Any]]:
        """Of the first run: step, loss (nats, mean since the line before), progress, tokens, seconds. [] without."""
        path = self.run(0) / CURVE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def defender(self, seed: int) -> Path:
        return self.path / "defence" / str(seed)

    def defence(self) -> list[Path]:
        """Of the incumbent, on the seeds on which it meets its challengers."""
        return _numbered(self.path / "defence")

    def write_candidate(self, candidate: Candidate, commit: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for path, text in candidate.sources.items():
            name = "candidate.py" if path == "train.py" else "candidate-" + path.replace("/", "-")
            write_aside(self.path / name, text)
        write_aside(self.path / "diff.patch", candidate.diff)
        facts = {"commit": commit, "parent": candidate.parent, "digest": candidate.digest}
        write_aside(self.path / CANDIDATE, json.dumps(facts | {"sources": dict(candidate.sources)}))

    def write_proposal(self, proposal: Proposal, cost_usd: float) -> None:
        """After every exchange, so that nothing that was paid for is lost. cost_usd: of all exchanges so far."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_aside(self.path / "spent.json", json.dumps({"cost_usd": cost_usd}))
        write_aside(self.path / "proposal.json", json.dumps(asdict(proposal), indent=1))
        for name, text in (("prompt.txt", proposal.prompt), ("reply.txt", proposal.reply)):
            if text:
                write_aside(self.path / name, text)

    def cost_usd(self) -> float:
        """Dollars of all exchanges about this trial."""
        return float((_read_json(self.path / "spent.json") or {}).get("cost_usd", 0.0))

    def proposal(self) -> Proposal | None:
        facts = _read_json(self.path / "proposal.json")
        if facts is None:
            return None
        edits = tuple(Edit(**edit) for edit in facts.pop("edits"))
        return Proposal(**facts | {"edits": edits, "purpose": Purpose(facts["purpose"])})

    def candidate(self) -> tuple[Candidate, str] | None:
        """The candidate and its commit, or None when the trial never came so far."""
        facts, proposal = _read_json(self.path / CANDIDATE), self.proposal()
        if facts is None or proposal is None:
            return None
        diff = (self.path / "diff.patch").read_text()
        return Candidate(proposal, facts["sources"], facts["parent"], facts["digest"], diff), facts["commit"]

    def write_smoke(self, digest: str, facts: Mapping[str, Any]) -> None:
        write_aside(self.path / "smoke.json", json.dumps({"digest": digest, "smoke": dict(facts)}))

    def smoke(self, digest: str) -> dict[str, Any] | None:
        """What two steps of that code cost, if that is known."""
        facts = _read_json(self.path / "smoke.json") or {}
        return facts["smoke"] if facts.get("digest") == digest else None

    def seeds(self, count: int) -> tuple[int, ...]:
        """Those on which it meets its challengers as the incumbent: drawn when first asked for, so that nobody could
        try them before."""
        if (facts := _read_json(self.path / "seeds.json")) is None:
            facts = {"seeds": [secrets.randbits(31) for _ in range(count)]}
            write_aside(self.path / "seeds.json", json.dumps(facts))
        return tuple(facts["seeds"])

    def write_finding(self, finding: Finding) -> None:
        write_aside(self.path / "finding.json", json.dumps(asdict(finding)))

    def finding(self) -> Finding | None:
        facts = _read_json(self.path / "finding.json")
        return None if facts is None else Finding(**facts | {"gains": {int(k): v for k, v in facts["gains"].items()}})

    def write_record(self, record: Record) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_aside(self.path / "record.json", json.dumps(asdict(record)))

    def record(self) -> Record | None:
        facts = _read_json(self.path / "record.json")
        return None if facts is None else Record(**facts)


@dataclass(frozen=True)
class SessionFolder:
    root: Path
    tag: str

    @property
    def path(self) -> Path:
        return self.root / ".overnight" / self.tag

    @property
    def ledger(self) -> Path:
        return self.path / "results.tsv"

    def trial(self, number: int) -> TrialFolder:
        return TrialFolder(self.path / "trials" / str(number))

    def trials(self) -> list[tuple[int, TrialFolder]]:
        return [(int(path.name), TrialFolder(path)) for path in _numbered(self.path / "trials")]

    def tidy(self) -> None:
        """What a crash has left: weights of runs that only their score is wanted of."""
        for run in [*self.noise(), *(run for _, trial in self.trials() for run in trial.defence())]:
            drop_weights(run)

    def noise_run(self, seed: int) -> Path:
        return self.path / "noise" / str(seed)

    def noise(self) -> list[Path]:
        """Runs of the code that the session began with, a seed each, made to measure noise."""
        return _numbered(self.path / "noise")

    def proposer(self, name: str) -> Path:
        folder = self.path / "proposers" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def audit_of(self, record: Record | None) -> Audit | None:
        """The audit of a kept row's first run, without numbers where its file is gone; None without a row."""
        if record is None:
            return None
        facts = _read_json(self.trial(record.trial or 0).run(0) / "audit.json")
        return Audit(0, None, None, None, None, "gone") if facts is None else Audit(**facts)

    def diffs(self, records: Iterable[Record]) -> dict[int, str]:
        """Of those trials whose folders hold one."""
        found = {record.trial: self.trial(record.trial).path / "diff.patch" for record in records if record.trial}
        return {number: path.read_text(errors="replace") for number, path in found.items() if path.is_file()}

    def guidance(self) -> str:
        path = self.path / "guidance.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def insights(self) -> str:
        """What a model has written down for its later proposals."""
        path = self.path / "insights.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def write_insights(self, text: str) -> None:
        write_aside(self.path / "insights.md", text.rstrip() + "\n")

    def session(self) -> dict[str, Any] | None:
        return _read_json(self.path / "session.json")

    def write_session(self, facts: dict[str, Any]) -> None:
        write_aside(self.path / "session.json", json.dumps(facts, indent=1))

    def create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".overnight" / ".gitignore"
            if not ignore.exists():
                write_aside(ignore, "*\n")
        except OSError as error:
            raise StateError(f"session: expected to write {self.path}, found: {because(error)}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One session per tag. The kernel drops the lock when its holder dies, however it dies."""
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StateError(
                    f"session {self.tag}: expected to be its only runner, found it held by {file.read().strip()}; "
                    "end that one or use another --tag"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()}\n")
            file.flush()
            yield


def drop_weights(run: Path) -> None:
    """Of a run whose score is all that will be asked for."""
    for name in (CHECKPOINT, SCORED):
        (run / name).unlink(missing_ok=True)


def _numbered(folder: Path) -> list[Path]:
    """What is in it under a number, in their order."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise StateError(f"{path}: expected JSON, found: {error}; mend it or use another --tag") from None
    return loaded
