"""A whole session against a server that speaks the wire format of OpenAI or Anthropic. Every exchange and run is real.

    python -m benchmarks.wire_session [--train FILE] [--budget 2e11flop] [--model anthropic:scripted] [--out FILE]

The "model" behind the server is a script: good edits, one that was tried before (refused, then replaced), one whose
SEARCH matches nothing (repaired), one that crashes in training but not in its smoke run (repaired), and a 429 on the
way. Prints the ledger and what happened; exit 1 if any of it did not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.ledger import read
from benchmarks.wire_server import Behaviour, WireServer, status, tool
from sandbox.isolation import Level, detect

ROOT = Path(__file__).resolve().parent.parent
END = "    prepare.finish(model, config)"
EXPERIMENTS = 6
KINDS = itertools.cycle(("optimizer", "schedule", "architecture"))  # four ideas of one kind in a row are refused


def edit(search: str, replace: str, description: str) -> Behaviour:
    edits = [{"path": "train.py", "search": search, "replace": replace}]
    return tool({"description": description, "hypothesis": "scripted", "category": next(KINDS), "edits": edits})


def shrink(factor: float, comment: str = "") -> Behaviour:
    """Scale all weights before the end: harmless, cheap, and its effect is plain in the score."""
    loop = f"    for p in model.parameters():{comment}\n        p.data.mul_({factor})\n"
    return edit(END, loop + END, f"weights x {factor}")


def script() -> Iterator[Behaviour]:
    yield status(429, retry_after="0")
    yield shrink(-1.0)
    yield shrink(-1.0, "  # once more")
    yield shrink(0.9)
    yield edit("LEARNING_RATE_OF_NOTHING = 1", "x = 1", "matches nothing")
    yield shrink(0.999)
    yield edit(END, "    if feed.tokens > 9000:\n        raise RuntimeError('late crash')\n" + END, "crashes late")
    for factor in (0.99, 0.98, 0.97, 0.96, 0.95):
        yield shrink(factor)


def project(folder: Path, train: Path) -> Path:
    """A repository with this train.py, committed by somebody."""
    folder.mkdir(parents=True)
    shutil.copy(train, folder / "train.py")
    for name in ("prepare.py", "program.md"):
        shutil.copy(ROOT / name, folder / name)
    if detect().level is not Level.BWRAP:  # the model is a script of ours
        (folder / "overnight.toml").write_text('sandbox = "process"\n')
    for args in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "start"],
    ):
        subprocess.run(["git", *args], cwd=folder, check=True)
    return folder


def session(folder: Path, budget: str, model: str) -> tuple[str, list[str]]:
    """What `overnight run` printed, and what each request to the server asked, in order."""
    with WireServer(script()) as server:
        command = [
            sys.executable,
            "-m",
            "agent",
            "run",
            "--judge=greedy",
            "--tag",
            "wire",
            "--proposer",
            "llm",
            "--model",
            model,
        ]
        command += [
            "--base-url",
            server.base_url,
            "--price",
            "1,10",
            "--budget",
            budget,
            "--experiments",
            str(EXPERIMENTS),
        ]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return done.stdout, [request.prompt for request in server.requests]


def facts(folder: Path, asked: list[str]) -> dict[str, bool]:
    records = read(folder / ".overnight" / "wire" / "results.tsv")
    ran = [record for record in records if record.status in ("keep", "discard", "crash")]
    return {
        "at least 5 trials besides the baseline": len(ran) > 5,
        "the 429 was asked again": len(asked) >= 2 and asked[0] == asked[1],
        "a duplicate was refused with its score": any("tried before: trial 1" in prompt for prompt in asked),
        "a patch that matches nothing was repaired": any("LEARNING_RATE_OF_NOTHING" in prompt for prompt in asked)
        and any(record.description == "weights x 0.999" for record in ran),
        "a crash went back and was repaired": any(record.status == "crash" for record in ran)
        and any("late crash" in prompt for prompt in asked)
        and any(record.description == "weights x 0.99" for record in ran),
        "every exchange was charged": abs(sum(record.cost_usd or 0 for record in records) - 0.002 * (len(asked) - 1))
        < 1e-6,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--train", type=Path, default=ROOT / "train.py")
    options.add_argument("--budget", default="2e11flop")
    options.add_argument("--model", default="openai:scripted", help="provider:name, both are ours")
    options.add_argument("--out", type=Path, help="keep the ledger here")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = project(Path(name) / "project", args.train)
        printed, asked = session(folder, args.budget, args.model)
        print(printed)
        found = facts(folder, asked)
        if args.out:
            shutil.copy(folder / ".overnight" / "wire" / "results.tsv", args.out)
    print("\n".join(f"{'yes' if happened else 'NO '}  {what}" for what, happened in found.items()))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
