"""The feed, the clock and the referee, as real processes over real sockets."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
from corpus.budget import Allowance, Budget, Clock
from corpus.build import prepare_data
from corpus.packing import WAITING, Packer, load_packer
from corpus.scoring import Data, referee
from corpus.tokenizer import Tokenizer
from tests.corpus.test_serve import Talk

ROOT = Path(__file__).parent.parent
BOS = 256


def packer(lengths: list[int], piece: int = 9, seed: int = 0) -> Packer:
    """Documents of these lengths (BOS included) whose tokens are all different."""
    docs = np.cumsum([0, *lengths]).astype(np.int64)
    tokens = np.arange(docs[-1]).astype(np.uint16)
    tokens[docs[:-1]] = 60000
    return Packer(tokens, docs, bos=60000, piece=piece, seed=seed)


def test_rows_are_full_begin_with_bos_and_drop_nothing_of_an_epoch() -> None:
    made = packer([3, 9, 30, 1, 12] * 300)
    rows = made.batch(4000, 9)
    assert rows.shape == (4000, 9)
    assert (rows[:, 0] == 60000).all()
    content = rows[rows != 60000]
    waiting = {made.tokens[start + i] for size, start in made.waiting for i in range(size)}
    everything = set(made.tokens[made.tokens != 60000])
    assert everything == set(content) | waiting, "every token of every document is drawn or about to be"
    _, counts = np.unique(content, return_counts=True)
    assert counts.max() <= 3, "in two epochs and a bit, none more often than that"


def test_best_fit_takes_the_longest_that_fits() -> None:
    made = packer([9] * WAITING + [4] * WAITING)
    row = made.batch(1, 13)[0]
    assert (row[0], row[9]) == (60000, 60000), "eight tokens and then three: no place is wasted or cut"


def test_the_order_is_the_seeds() -> None:
    lengths = [5, 9, 13] * 500
    a, b, c = packer(lengths, seed=1), packer(lengths, seed=1), packer(lengths, seed=2)
    first = a.batch(50, 9)
    assert (first == b.batch(50, 9)).all()
    assert (first != c.batch(50, 9)).any()


def test_no_validation_document_is_streamed_for_training(data: Path) -> None:
    meta = json.loads((data / "meta.json").read_text())
    streams = {
        split: load_packer(data, split, bos=meta["bos_id"], piece=65, seed=0).batch(400, 65)
        for split in ("train", "val", "held")
    }
    names = {split: {bytes(row[row < 256].astype(np.uint8)) for row in rows} for split, rows in streams.items()}
    documents = {
        split: {piece.split(b":")[0] for text in texts for piece in text.split(b"document ")[1:] if b":" in piece}
        for split, texts in names.items()
    }
    assert documents["train"]
    assert documents["val"]
    assert not documents["train"] & documents["val"]
    assert not documents["train"] & documents["held"]
    assert not documents["val"] & documents["held"]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300s", 300, "s"),
        ("2e13flop", 2e13, "flop"),
        ("50Mtok", 5e7, "tok"),
        ("1000steps", 1000, "steps"),
        ("1.5ks", 1500, "s"),
    ],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["", "300", "s", "-3s", "0s", "3 s", "1e13", "infs", "3sec", "300s;"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget: expected e\.g\. 300s"):
        Budget.parse(text)


def test_at_most_two_steps_are_in_flight_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw n may return only when all work queued before draw n - 1 is done: then steps n - 1 and n are left."""
    made: list[Event] = []
    waited: list[int] = []

    class Event:
        def record(self) -> None:
            made.append(self)

        def synchronize(self) -> None:
            waited.append(made.index(self))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    feed = object.__new__(prepare.Feed)
    feed._device, feed._events = torch.device("cuda"), []
    for draw in range(5):
        feed._bound_steps_in_flight()
        assert waited == list(range(draw))


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def clock(budget: str, time: Time, allowance: Allowance | None = None, flop: float | None = None) -> Clock:
    return Clock(Budget.parse(budget), allowance or Allowance(100, 1000), flop, time)


def test_a_wall_budget_starts_with_the_first_batch() -> None:
    time = Time()
    made = clock("10s", time)
    time.now = 50
    made.warm(64)
    assert made.draw(64)
    time.now = 59
    assert made.draw(64)
    assert made.progress() == 0.9
    time.now = 60
    assert not made.draw(64)
    time.now = 61
    assert not made.draw(64), "over is over"
    made.seal()
    assert (made.tokens, made.seconds(), made.sealed - made.ended) == (128, 10, 1)


@pytest.mark.parametrize(("budget", "ended"), [("10s", 10), ("128tok", 3)])
def test_who_draws_the_end_late_was_over_before(budget: str, ended: float) -> None:
    time = Time()
    made = clock(budget, time)
    for time.now in (0, 1):
        assert made.draw(64)
    for time.now in (2, 99) if budget == "10s" else ():
        assert made.draw(64) == (time.now < 10)
    time.now = 99
    assert not made.draw(64)
    made.seal()
    assert made.ended == (ended if budget == "10s" else 2)
    assert made.sealed == 99


def test_start_up_beyond_the_allowance_counts() -> None:
    time = Time()
    made = clock("10s", time, Allowance(5, 1000))
    time.now = 12
    assert made.draw(1)
    assert made.seconds() == 7
    tokens = clock("1ktok", time)
    tokens.warm(1500)
    tokens.draw(100)
    assert tokens.spent() == 600
    steps = clock("9steps", time)
    for _ in range(4):
        steps.warm(500)
    steps.draw(100)
    assert steps.spent() == 3


def test_token_step_and_flop_budgets() -> None:
    time = Time()
    for made in (clock("100tok", time), clock("2steps", time), clock("1e3flop", time, flop=10.0)):
        assert [made.draw(50) for _ in range(4)] == [True, True, False, False]
        assert made.progress() == 1.0


def by_hand(folder: Path, data: Path, train: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OVERNIGHT_CACHE": str(data.parent.parent), "PYTHONPATH": str(ROOT)} | more
    for name in ("train.py", "prepare.py"):
        (folder / name).write_text((train if name == "train.py" else ROOT / name).read_text())
    return subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_by_hand_trains_within_the_budget_evaluates_and_prints_the_block(tmp_path: Path, data: Path) -> None:
    from sandbox.metrics import parse_summary

    done = by_hand(tmp_path, data, ROOT / "tests" / "tiny_train.py", OVERNIGHT_BUDGET="30steps")
    assert done.returncode == 0, done.stderr
    metrics = parse_summary(done.stdout)
    assert (metrics.num_steps, metrics.depth) == (30, 1)
    assert metrics.total_tokens_M == pytest.approx(30 * 8 * 64 / 1e6, abs=0.05)
    assert 1 < metrics.val_bpb < 8
    again = parse_summary(by_hand(tmp_path, data, ROOT / "tests" / "tiny_train.py", OVERNIGHT_BUDGET="30steps").stdout)
    assert again.val_bpb == metrics.val_bpb, "the same seed gives the same number"


def test_a_flop_budget_by_hand_is_measured_not_claimed(tmp_path: Path, data: Path) -> None:
    from sandbox.metrics import parse_summary

    # Forward, input gradients and weight gradients of a 16 x 257 matrix: 6 x 16 x 257 FLOPs for each token, less the
    # input gradients of nothing: an embedding costs none.
    per_token = 6 * 16 * 257
    budget = per_token * 8 * 64 * 20
    metrics = parse_summary(
        by_hand(tmp_path, data, ROOT / "tests/tiny_train.py", OVERNIGHT_BUDGET=f"{budget}flop").stdout
    )
    assert metrics.num_steps == 20


def test_without_data_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache" / "data").mkdir(parents=True)
    done = by_hand(tmp_path, tmp_path / "cache" / "data" / "none", ROOT / "tests" / "tiny_train.py")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("data: expected a prepared set under")
    assert "Traceback" not in done.stderr


class Level(torch.nn.Module):
    """Every token as likely as every other, but for `never`, which it holds for impossible."""

    def __init__(self, vocab_size: int, never: int | None) -> None:
        super().__init__()
        logits = torch.zeros(vocab_size)
        if never is not None:
            logits[never] = -1e9
        self.register_buffer("logits", logits)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*idx.shape, -1)


@pytest.mark.parametrize("vocab_size", [257, 300])
def test_a_level_guess_scores_what_arithmetic_says(tmp_path: Path, vocab_size: int) -> None:
    (tmp_path / "texts").mkdir()
    for n in range(400):
        (tmp_path / "texts" / f"{n}.txt").write_text(f"text {n}")
    folder = prepare_data(
        str(tmp_path / "texts"), cache=tmp_path, vocab_size=vocab_size, max_seq_len=32, eval_tokens=64
    )
    kept, tokenizer = Data.load(folder), Tokenizer.load(folder)
    bos = kept.meta["bos_id"]
    targets = [row[1:][row[1:] != bos] for row in kept.rows("val")]
    tokens = sum(len(row) for row in targets)
    assert tokens < 32 * len(targets), "some targets are special tokens"
    text_bytes = sum(len(tokenizer.decode(row).encode()) for row in targets)
    assert (text_bytes > tokens) == (vocab_size > 257), "some tokens are more than a byte"

    for never, choices in ((None, vocab_size), (bos, vocab_size - 1)):
        talk = Talk(referee, folder, {"tell": True})
        told = prepare.evaluate_bpb(Level(vocab_size, never), talk.link, torch.device("cpu"))
        result, nats = talk.close(), tokens * math.log(choices)
        assert told["val_bpb"] == result["val_bpb"] == pytest.approx(nats / text_bytes / math.log(2), rel=1e-6)
        assert (result["nats"], result["bytes"]) == (pytest.approx(nats, rel=1e-6), text_bytes)


def test_a_small_machine_gets_small_data_by_default(tmp_path: Path) -> None:
    texts, cache = tmp_path / "texts", tmp_path / "cache"
    texts.mkdir()
    for n, path in enumerate(sorted((ROOT / "agent").glob("**/*.py"))):
        (texts / f"{n}.txt").write_text(path.read_text())
    env = os.environ | {"OVERNIGHT_CACHE": str(cache), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "prepare.py"), "--dataset", str(texts)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    meta = json.loads((folder / "meta.json").read_text())
    assert folder.is_relative_to(cache)
    assert (meta["vocab_size"], meta["max_seq_len"], meta["eval_tokens"]) == (1024, 256, 131_072)
    assert f"vocabulary 1024, data id {meta['data_id']}" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc, and its memory read from /proc")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    code = (
        "import numpy as np, prepare\n"
        "{}\n"
        "big = np.ones(1 << 26)\n"
        "del big\n"
        "print([int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    without, kept = (
        int(subprocess.run([sys.executable, "-c", code.format(call)], env=env, capture_output=True, check=True).stdout)
        for call in ("", "prepare.keep_memory()")
    )
    assert kept - without > (1 << 19) * 0.9  # KiB: 512 MiB of ones
