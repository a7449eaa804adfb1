"""What scoring and audit of a trial on a GPU cost beside its training, by FLOP count: no GPU is needed.

    python -m benchmarks.scoring_cost [--tokens 500e6]

Counts train.py with a GPU's constants (rows of 2,048, vocabulary 8,192) as a session does before it trains them: two
steps with shapes and no numbers. --tokens: that 300 s of training draw; 500e6 is the known figure of one H100.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import prepare
from agent.candidate import digest_of
from agent.cell import Cell
from agent.config import Task
from agent.machine import probe
from agent.scoring import PROBES
from agent.smoke import Pace, Smoke, SmokeTest
from agent.values import Candidate, Proposal
from corpus.build import prepare_data
from sandbox.isolation import detect
from sandbox.pool import Slot

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.05


def counted(folder: Path) -> Smoke:
    data = prepare_data(
        "stdlib",
        cache=folder / "cache",
        vocab_size=prepare.VOCAB_SIZE,
        max_seq_len=prepare.MAX_SEQ_LEN,
        eval_tokens=prepare.EVAL_TOKENS,
        workers=2,
        progress=False,
    )
    text = (ROOT / "train.py").read_text()
    candidate = Candidate(Proposal((), "baseline"), {"train.py": text}, "0" * 40, digest_of({"train.py": text}), "")
    machine = replace(probe(), device="cuda", memory_gb=1e6)
    test = SmokeTest(Task(), {"prepare.py": (ROOT / "prepare.py").read_text()}, Cell(data, machine, detect()), Pace())
    return test.of(candidate, folder / "smoke", "1e12flop", Slot(0, "local"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=float, default=500e6)
    tokens = parser.parse_args().tokens
    with tempfile.TemporaryDirectory() as folder:
        smoke = counted(Path(folder))
    assert smoke.flop_per_token
    assert smoke.forward_flop_per_token
    trained = smoke.flop_per_token * tokens
    asked = {"score": prepare.EVAL_TOKENS, "audit": PROBES * prepare.MAX_SEQ_LEN, "held-back": prepare.EVAL_TOKENS}
    print(f"looked at in {smoke.seconds:.1f} s, two small steps included; it would hold {smoke.memory_mb:.0f} MB")
    print(f"training  {smoke.flop_per_token:.4g} FLOPs a token, forward {smoke.forward_flop_per_token:.4g}")
    print(f"300 s     {tokens / 1e6:.0f} M tokens, {trained:.4g} FLOPs")
    for name, read in asked.items():
        print(f"{name:<10}{read / 1e6:.1f} M tokens, {smoke.forward_flop_per_token * read / trained:.2%}")
    share = smoke.forward_flop_per_token * sum(asked.values()) / trained
    print(f"together  {share:.2%} (bar {BAR:.0%})")
    return int(share > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
