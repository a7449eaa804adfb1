"""A session in which the search shows what it believes, stops, steers by and remembers. Every exchange and run is real.

    python -m benchmarks.search.show [--model anthropic:scripted] [--out FILE]

Over the tiny train.py, on the data that was prepared last, with the judge and the pruner that a session has by default.
First a session of `knobs`, whose curves are the past that later runs are compared with. Then one whose "model" is a
script behind a server of the real wire format: a change that is lucky on the session's seed, a small gain that is true,
a run without hope, and ideas that nothing comes of until the plateau. A human types guidance; the session is killed
with -9 in mid-run and taken up again. Prints the ledger and what happened; exit 1 if any of it did not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.folder import EXECUTION, METRICS, SessionFolder
from agent.ledger import read
from agent.values import Record
from benchmarks.records import markdown
from benchmarks.wire_server import Answer, Behaviour, Recorded, WireServer
from benchmarks.wire_session import edit, project, shrink

ROOT = Path(__file__).parents[2]
BUDGET, RATE = "100steps", "MATRIX_LR = 12.0"
PAST, TAG = "before", "show"
PAST_TRIALS = 24
LUCKY, SMALL, HOPELESS, GUIDED, KILLED, STUCK = 1, 2, 3, 6, 8, 11  # trials
GUIDANCE = "Try a larger batch before anything else."
# Of a rate so high that seeds differ, slow enough to be watched, with first weights that are unlucky on seed 42.
UNLUCKY, MODEL = "    torch.rand(6)\n", "    model = build_model(config)\n"
MADE = {
    "import torch\n": "import time\n\nimport torch\n",
    "BATCH = 8\n": "BATCH = 2 * 4\n",  # no literal, so no knob: the past is of learning rates only
    "MATRIX_LR = 0.5\n": f"{RATE}\n",
    MODEL: UNLUCKY + MODEL,
    "        step += 1\n": "        step += 1\n        time.sleep(0.04)\n",
}
HEAD = "        self.head = nn.Linear(16, config.vocab_size)\n"
DEEPER = HEAD.replace("nn.Linear(16, config", "nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, config")


def script(guidance: Path) -> Iterator[Answer]:
    """One answer a request, in the order of the trials."""

    def typed(_: Recorded) -> Behaviour:
        """A human writes while the model is asked."""
        guidance.write_text(GUIDANCE + "\n")
        return shrink(0.3)

    slower = edit(UNLUCKY, UNLUCKY.replace("6", "0"), "other first weights, and a little slower")
    arguments = json.loads(slower.arguments or "")
    arguments["edits"].append({"path": "train.py", "search": RATE, "replace": "MATRIX_LR = 11.7"})
    yield Behaviour(arguments=json.dumps(arguments))
    yield edit(RATE, "MATRIX_LR = 14.0", "a little faster")
    yield edit("MATRIX_LR = 14.0", "MATRIX_LR = 0.01", "far slower")
    yield shrink(0.5)
    yield shrink(0.4)
    yield typed
    for factor in (0.2, 0.1, 0.05, -0.5):
        yield shrink(factor)
    yield edit("MATRIX_LR = 14.0", "MATRIX_LR = 15.0", "one constant more")
    yield edit(HEAD, DEEPER.replace("\n", ")\n"), "a layer between")


def made(folder: Path) -> Path:
    """The project, with the train.py of this show."""
    text = (ROOT / "tests" / "tiny_train.py").read_text()
    for old, new in MADE.items():
        assert text.count(old) == 1, f"expected one {old!r} in tiny_train.py"
        text = text.replace(old, new)
    (folder / "train.py").write_text(text)
    return project(folder / "project", folder / "train.py")


def overnight(folder: Path, tag: str, *flags: str, killed: Path | None = None) -> str:
    """What `overnight run` printed. killed: with -9 as soon as there is this."""
    command = [sys.executable, "-m", "agent", "run", "--tag", tag, "--budget", BUDGET, *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=log, stderr=subprocess.STDOUT)
        while child.poll() is None:
            if killed is not None and killed.exists():
                child.kill()
            time.sleep(0.1)
        log.seek(0)
        return log.read()


def facts(folder: SessionFolder, asked: Sequence[str]) -> dict[str, bool]:
    """asked: what each request to the model said."""
    rows = {record.trial: record for record in read(folder.ledger)}
    lucky, small, hopeless = (rows[number] for number in (LUCKY, SMALL, HOPELESS))
    first = score(folder, LUCKY) - score(folder, 0)
    told = [number for number, prompt in enumerate(asked, 1) if GUIDANCE in prompt]
    stuck = [prompt for prompt in asked if "No gain in the last" in prompt]
    return {
        f"a lucky seed is not kept: {first:+.6f} in its first run, then {lucky.reason}": first < 0
        and lucky.status == "discard"
        and "fresh seeds" in lucky.reason,
        f"a small true gain is kept after re-runs: {small.reason}": small.status == "keep" and (small.n or 0) > 1,
        f"a hopeless run ends after {hopeless.fraction:.0%} of its budget: {hopeless.reason}": 0
        < (hopeless.fraction or 1.0)
        <= 0.3
        and hopeless.reason.startswith("stopped at"),
        f"guidance typed while trial {GUIDED} was proposed is in every later prompt": told
        == list(range(GUIDED + 1, len(asked) + 1)),
        f"a plateau is told to the model before trial {STUCK}, and one constant more is refused": bool(stuck)
        and any("turns one constant" in prompt for prompt in stuck)
        and "a layer between" in rows[STUCK].description,
        "killed with -9 and taken up, no row is lost or doubled": list(rows) == list(range(STUCK + 1))
        and len(rows) == len(read(folder.ledger)),
        "and nothing was asked for a second time": len(asked) == STUCK + 1,
    }


def score(folder: SessionFolder, trial: int) -> float:
    """Of its first run."""
    return float(json.loads((folder.trial(trial).run(0) / METRICS).read_text())["val_bpb"])


def table(rows: Sequence[Record]) -> str:
    lines = [
        [str(row.trial), row.status, f"{row.val_bpb:.6f}" if row.val_bpb else "", row.description, row.reason]
        for row in rows
    ]
    return markdown(["trial", "status", "val_bpb", "what", "why"], lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="openai:scripted", help="provider:name, both are ours")
    options.add_argument("--out", type=Path, help="keep the ledger here")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = made(Path(name))
        past = ["--proposer", "knobs", "--judge", "greedy", "--experiments", str(PAST_TRIALS)]
        print(overnight(root, PAST, *past, "--sampler", "random"))
        folder = SessionFolder(root, TAG)
        with WireServer(script(folder.path / "guidance.md")) as server:
            flags = ["--proposer", "llm", "--model", args.model, "--base-url", server.base_url, "--price", "1,10"]
            flags += ["--experiments", str(STUCK)]
            print(overnight(root, TAG, *flags, killed=folder.trial(KILLED).run(0) / "curve.jsonl"))
            assert not (folder.trial(KILLED).run(0) / EXECUTION).exists(), "killed in mid-run"
            print(overnight(root, TAG, *flags))
            asked = [request.prompt for request in server.requests]
        rows = read(folder.ledger)
        if args.out:
            shutil.copy(folder.ledger, args.out)
        found = facts(folder, asked)
    print(table(rows))
    print("\n".join(f"{'yes' if happened else 'NO '}  {what}" for what, happened in found.items()))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
