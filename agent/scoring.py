"""The score of a checkpoint, and the audit that a keep has to pass: a fresh process of the candidate's code for each.

The numbers come from the trusted process at the other end of its socket (corpus.scoring), which never runs that code.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agent.cell import Cell, Job, failure_of
from agent.errors import StateError
from agent.folder import CHECKPOINT, CONFIG, SCORED
from agent.values import Audit, Candidate
from corpus.errors import DataError
from corpus.home import verify
from sandbox.pool import Slot
from sandbox.workspace import write_aside

BASELINE_SECONDS = 6 * 3600.0  # for the first run of a session, which nobody has timed yet
AT_LEAST_SECONDS = 30.0  # start-up alone may take a fifth of it on a busy machine
PROBES = 4096  # a model that peeks at 0.2 % of the positions is met with probability 1 - 0.998^4096 = 99.97 %
COMMAND = ("python", "prepare.py", "score")


def eager(slot: Slot) -> Slot:
    """`slot` for runs in which `torch.compile` does nothing: a few batches are not worth it, and FLOPs are counted."""
    return replace(slot, env={**slot.env, "TORCHDYNAMO_DISABLE": "1", "TORCH_COMPILE_DISABLE": "1"})


@dataclass(frozen=True)
class Scorer:
    """fixed: text of the files no edit may touch. seconds: that scoring the baseline took, None before it."""

    fixed: Mapping[str, str]
    cell: Cell
    seconds: float | None

    def first(
        self, candidate: Candidate, described: Any, folder: Path, slot: Slot, cancel: threading.Event
    ) -> dict[str, Any]:
        """The referee's result of the checkpoint just sealed in `folder`; `error` in it says why there is no number.

        described: what the run said of its model (config and facts), kept in `folder` for the next time.
        """
        write_aside(folder / CONFIG, json.dumps(described))
        return self._ask("referee", {"split": "val", "nats": str(folder / SCORED)}, candidate, folder, slot, cancel)

    def again(self, candidate: Candidate, folder: Path, slot: Slot, cancel: threading.Event) -> float | str:
        """Score the checkpoint in `folder` once more: bits per byte, or why there is no number."""
        asked = {"split": "val", "nats": str(folder / SCORED)}
        scored = self._ask("referee", asked, candidate, folder, slot, cancel)
        return str(scored["error"]) if scored.get("error") else float(scored["val_bpb"])

    def audit(self, candidate: Candidate, folder: Path, slot: Slot, cancel: threading.Event) -> Audit:
        """Ask the model in `folder` again, blindly, and score the held-back split. What goes wrong is in `problem`."""
        self._verify_data()
        asked = {"split": "val", "nats": str(folder / SCORED), "seed": secrets.randbits(64), "probes": PROBES}
        found = self._ask("audit", asked, candidate, folder, slot, cancel)
        held = {} if "error" in found else self._ask("referee", {"split": "held"}, candidate, folder, slot, cancel)
        self._verify_data()
        result = Audit(
            probes=found.get("probes", 0),
            scored=found.get("scored"),
            blind=found.get("blind"),
            worst=found.get("worst"),
            held_bpb=held.get("val_bpb"),
            problem=str(found.get("error") or held.get("error") or ""),
            seconds=found["seconds"] + held.get("seconds", 0.0),
        )
        write_aside(folder / "audit.json", json.dumps(asdict(result), indent=1))
        return result

    def _audit_share(self) -> float:
        """Rows of an audit over rows of scoring: on a small data set it asks for many more."""
        meta = json.loads(((self.cell.data or Path()) / "meta.json").read_text(encoding="utf-8"))
        scored = min(meta["eval_tokens"], meta["val_tokens"]) / meta["max_seq_len"]
        return float(max(1.0, PROBES / max(1.0, scored)))

    def _verify_data(self) -> None:
        """What scored is what it was when it was made: nothing that ran has changed it."""
        try:
            verify(self.cell.data or Path())
        except DataError as error:
            raise StateError(str(error)) from None

    def _ask(
        self,
        role: str,
        asked: Mapping[str, Any],
        candidate: Candidate,
        folder: Path,
        slot: Slot,
        cancel: threading.Event,
    ) -> dict[str, Any]:
        """What referee or auditor found out about the sealed checkpoint; `error` says why it is not enough."""
        share = self._audit_share() if role == "audit" else 1.0
        limit = BASELINE_SECONDS if self.seconds is None else max(AT_LEAST_SECONDS, 2 * share * self.seconds)
        log = folder / ("score.log" if role == "referee" else "audit.log")
        sealed: dict[str, str | Path] = {CHECKPOINT: folder / CHECKPOINT, CONFIG: (folder / CONFIG).read_text()}
        files = {**candidate.sources, **self.fixed, **sealed}
        execution, result = self.cell.run(
            Job(COMMAND, files, {"score": True}, log, limit, (role, asked)), folder, eager(slot), cancel
        )
        # Not a word of its log: a child that has seen validation text would have a way to the next proposal.
        failure = failure_of(execution, None, limit)
        if failure or not ({"val_bpb", "probes"} & set(result)):
            result["error"] = result.get("error") or f"scoring: {failure or 'no answer'}; see {log.name}"
        return result | {"seconds": execution.wall_seconds}
