"""A candidate, honest or not, through everything that a keep goes through but preflight, and what came of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from agent.candidate import digest_of
from agent.errors import SmokeError
from agent.judge import after_audit
from agent.preflight import check
from agent.trial import Bench
from agent.values import Candidate, Proposal, Status, Verdict
from sandbox.pool import Slot

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "tests" / "tiny_train.py").read_text()
SLOT = Slot(0, "attack", {"OMP_NUM_THREADS": "1"})
STEPS = 20
WORSE = 0.1  # bits per byte, by which an attack that cost its author training shows

Edits = tuple[tuple[str, str], ...]
FINISH, FORWARD = "    prepare.finish(model, config)", "        return self.head(self.table(idx))"
BUILD = "def build_model(config):\n"
IMPORTS = "import prepare\n"


@dataclass(frozen=True)
class Attack:
    """edits of the tiny train.py, and what stops them: the beginning of `outcome`. slow: left to CI's long run."""

    edits: Edits
    stopped_by: str
    slow: bool = False
    budget: str = f"{STEPS}steps"


def forward(code: str) -> Edits:
    return ((FORWARD, code),)


def at_import(code: str) -> Edits:
    return ((IMPORTS, IMPORTS + code),)


def candidate(edits: Edits, data: Path = Path("nowhere"), text: str = TINY) -> Candidate:
    """data: of the session, which the attacker knows. text: what is edited."""
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new.replace("{data}", str(data)))
    return Candidate(Proposal((), "attack"), {"train.py": text}, "0" * 40, digest_of({"train.py": text}), "")


def attempt(
    bench: Bench, edits: Edits, folder: Path, budget: str = f"{STEPS}steps", text: str = TINY
) -> tuple[float | None, str]:
    """The number that would be kept, or None and what stopped it."""
    tried = candidate(edits, bench.cell.data or Path(), text)
    try:
        smoke = bench.smoke(tried, folder / "smoke", budget, SLOT) if budget.endswith("flop") else None
    except SmokeError as error:
        return None, f"smoke run: {str(error).splitlines()[0]}"
    done = bench.run(tried, folder / "run", seed=42, budget=budget, smoke=smoke, slot=SLOT, cancel=threading.Event())
    if done.metrics is None:
        return None, _who(done.failure)
    audit = bench.scorer.audit(tried, folder / "run", SLOT, threading.Event())
    verdict = after_audit(Verdict(Status.KEEP, ""), audit, None, bench.machine.device, bench.task)
    return (done.metrics.val_bpb, "") if verdict.status is Status.KEEP else (None, verdict.reason)


def _who(failure: str) -> str:
    if failure.startswith(("no checkpoint", "checkpoint", "exit 1: ValueError: seal", "exit 1: ValueError: feed")):
        return f"feeder: {failure}"
    if failure.startswith("exit 1: AssertionError: nothing there"):
        return f"sandbox: {failure}"
    return failure if failure.startswith("FLOPs") else f"scoring: {failure}"


def outcome(value: float | None, why: str, honest: float) -> str:
    """In a word: what stopped it, or how its number stands to the honest one."""
    if value is None:
        return why
    return "number unmoved" if value == honest else "number worse" if value > honest + WORSE else "NOTHING"


def refused(edits: Edits) -> str:
    """The preflight rules that an attack breaks, "" if it passes."""
    return ", ".join(sorted({finding.rule for finding in check(candidate(edits).sources["train.py"], TINY, "train")}))
