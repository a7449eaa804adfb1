"""Runs the example edits of train.py through patch and preflight: the good ones pass, each bad one breaks its own rule.

    python benchmarks/check_edits.py

Prints a table and exits 1 if any edit ends otherwise than its file says. An edit is a JSON file as a model would send
it by tool call, with one key more for the bad ones: the `rule` that it has to break.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent import patch, preflight, reply
from agent.errors import PatchError

ROOT = Path(__file__).resolve().parent.parent
EDITS = ROOT / "tests" / "agent" / "edits"


@dataclass(frozen=True)
class Outcome:
    """expected, found: the rules broken, in order and without repeats. ms: patch and preflight together."""

    file: str
    expected: tuple[str, ...]
    found: tuple[str, ...]
    message: str
    ms: float


def outcomes(source: str) -> Iterator[Outcome]:
    """Each example edit applied to `source` (the text of train.py), good ones first."""
    for file in sorted(EDITS.glob("*/*.json"), key=lambda file: (file.parent.name != "good", file.name)):
        call = json.loads(file.read_text(encoding="utf-8"))
        expected = (call.pop("rule"),) if "rule" in call else ()
        start = time.perf_counter()
        try:
            new = patch.apply({"train.py": source}, reply.parse_tool_call(call).edits, ["train.py"])
            findings = preflight.check(new["train.py"], source)
            found, message = tuple(dict.fromkeys(f.rule for f in findings)), findings[0].message if findings else ""
        except PatchError as error:
            found, message = ("does not apply",), str(error)
        ms = (time.perf_counter() - start) * 1000
        yield Outcome(f"{file.parent.name}/{file.stem}", expected, found, message, ms)


def main() -> int:
    wrong = 0
    print(f"{'edit':<38} {'expected':<20} {'found':<20} {'ms':>6}")
    for one in outcomes((ROOT / "train.py").read_text(encoding="utf-8")):
        print(f"{one.file:<38} {', '.join(one.expected) or '-':<20} {', '.join(one.found) or '-':<20} {one.ms:6.1f}")
        if one.expected != one.found:
            wrong += 1
            print(f"    {one.message}")
    print(f"{wrong} edits ended otherwise than expected")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
