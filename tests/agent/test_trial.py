"""Real training children under the harness: smoke, feed, referee, and every way a run can fail to leave a number."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cell import Cell
from agent.config import Task
from agent.errors import SmokeError, StateError
from agent.machine import probe
from agent.smoke import Pace, Smoke
from agent.trial import Bench
from agent.values import Candidate, Run
from corpus.budget import Budget
from sandbox.isolation import detect
from sandbox.metrics import Metrics
from sandbox.pool import Slot
from sandbox.process import Ending, Execution
from tests.attacks import metric

ROOT = Path(__file__).parent.parent.parent
TINY = metric.TINY
SLOT = Slot(0, "local", {"OMP_NUM_THREADS": "1"})
WITH_TIME = "import time\n\nimport torch\n"
PER_TOKEN = 6 * 16 * 257  # FLOPs of the one matrix, forward and backward


def candidate(*edits: tuple[str, str], text: str = TINY) -> Candidate:
    return metric.candidate(edits, text=text)


@pytest.fixture
def bench(data: Path) -> Bench:
    fixed = {"prepare.py": (ROOT / "prepare.py").read_text()}
    return Bench(Task(), fixed, Cell(data, probe(), detect()), Pace(5, 10, 10))


def train(bench: Bench, tried: Candidate, folder: Path, budget: str = "20steps", smoke: Smoke | None = None) -> Run:
    return bench.run(tried, folder, seed=42, budget=budget, smoke=smoke, slot=SLOT, cancel=threading.Event())


def test_a_run_leaves_a_number_that_the_harness_measured(bench: Bench, tmp_path: Path) -> None:
    smoke = bench.smoke(candidate(), tmp_path / "smoke", "1e9flop", SLOT)
    assert smoke is not None
    assert smoke.flop_per_token == PER_TOKEN
    run = train(bench, candidate(), tmp_path / "run", f"{PER_TOKEN * 8 * 64 * 20}flop", smoke)
    assert run.failure == ""
    assert run.metrics is not None
    assert run.metrics.num_steps == 20
    assert run.tflop == pytest.approx(PER_TOKEN * 8 * 64 * 20 / 1e12)
    assert 1 < run.metrics.val_bpb < 8
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.log", "curve.jsonl", "execution.json", "metrics.json", "model.safetensors"} <= left
    assert "work" not in left
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == list(range(20))
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_what_the_candidate_prints_is_not_what_is_believed(bench: Bench, tmp_path: Path) -> None:
    lie = 'print("---\\nval_bpb: 0.1\\ntraining_seconds: 1.0\\n")\n    prepare.finish(model, config)'
    honest = train(bench, candidate(), tmp_path / "honest")
    liar = train(bench, candidate(("prepare.finish(model, config)", lie)), tmp_path / "liar")
    assert honest.metrics is not None
    assert liar.metrics is not None
    assert liar.metrics.val_bpb == honest.metrics.val_bpb


def test_the_trainer_sees_no_data_path_and_no_key(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    look = "import os; print(dict(os.environ), open(os.environ['OVERNIGHT_TRIAL']).read())"
    run = train(bench, candidate(("step = 0", look + "; step = 0")), tmp_path / "run")
    log = run.execution.log_path.read_text()
    assert "OVERNIGHT_TRIAL" in log
    assert "sk-secret" not in log
    assert str(bench.cell.data) not in log


@pytest.mark.parametrize(
    ("edits", "failure"),
    [
        ((("prepare.finish(model, config)", "pass"),), "no checkpoint"),
        ((("step = 0", "step = 1 / 0"),), "exit 1: ZeroDivisionError: division by zero"),
        ((("step = 0", "import os; os.kill(os.getpid(), 9)"),), "ended by signal 9"),
        (
            (("return self.head(self.table(idx))", "return self.head(self.table(idx)) * float('nan')"),),
            "scoring: expected finite",
        ),
        (
            (("prepare.finish(model, config)", "model.table = nn.Embedding(3, 3); prepare.finish(model, config)"),),
            "scoring: exit 1",
        ),
        (
            (("prepare.finish(model, config)", "import time; time.sleep(7); prepare.finish(model, config)"),),
            "checkpoint 7",
        ),
    ],
    ids=["no-finish", "exception", "signal", "nan", "other-weights", "late"],
)
def test_no_number_without_a_sound_run(
    bench: Bench, tmp_path: Path, edits: tuple[tuple[str, str], ...], failure: str
) -> None:
    run = train(bench, candidate(*edits), tmp_path / "run")
    assert run.metrics is None
    assert run.failure.startswith(failure)


def test_a_run_that_hangs_is_ended(data: Path, tmp_path: Path) -> None:
    fixed = {"prepare.py": (ROOT / "prepare.py").read_text()}
    bench = Bench(Task(), fixed, Cell(data, probe(), detect()), Pace(5, 1, 10))
    assert bench.wall_limit(Budget(20, "steps")) == 30
    cancel = threading.Event()
    threading.Timer(4, cancel.set).start()
    hung = candidate(("step = 0", "import time; time.sleep(1000)"))
    run = bench.run(hung, tmp_path / "run", seed=1, budget="20steps", smoke=None, slot=SLOT, cancel=cancel)
    assert run.execution.ending is Ending.CANCELLED
    assert run.execution.wall_seconds < 15
    assert run.failure == "cancelled"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((("nn.Linear(16, config.vocab_size)", "nn.Linear(17, config.vocab_size)"),), "shapes cannot be multiplied"),
        ((("lr=MATRIX_LR", "lr=MATRIX_LR, nonsense=1"),), "nonsense"),
        ((("prepare.finish(model, config)", "pass"),), "no checkpoint"),
        (
            (("return self.head(self.table(idx))", "return self.head(self.table(idx)).mean(1)"),),
            "1D target must have size",
        ),
        (
            (("return GPT(config)", "return GPT(GPTConfig(config.vocab_size + (__name__ != '__main__')))"),),
            "size mismatch",
        ),
        (
            (("return self.head(self.table(idx))", "return self.head(self.table(idx).double())"),),
            r"exit 1: RuntimeError: mat1 and mat2 must have the same dtype",
        ),
        ((("step = 0", "torch.empty(1 << 50)"),), r"two small steps fail \(out of memory \(peak \d+ MB\)\)"),
    ],
    ids=["shape", "keyword", "no-finish", "logits", "not-rebuilt", "dtype", "allocation"],
)
def test_the_smoke_run_catches_it_before_any_budget_is_spent(
    bench: Bench, tmp_path: Path, edits: tuple[tuple[str, str], ...], message: str
) -> None:
    with pytest.raises(SmokeError, match=message):
        bench.smoke(candidate(*edits), tmp_path / "smoke", "1e9flop", SLOT)


@pytest.mark.slow
def test_a_smoke_run_that_fills_the_memory_is_ended(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr("agent.cell.MEMORY_SHARE", (1 << 30) / host)
    hungry = candidate(("step = 0", "held = torch.ones(3 << 27); time.sleep(30)"), ("import torch\n", WITH_TIME))
    with pytest.raises(SmokeError, match=r"two small steps fail \(out of memory \(peak \d+ MB\)\)"):
        bench.smoke(hungry, tmp_path / "smoke", "1e9flop", SLOT)


def test_a_model_that_leaves_no_room_is_told_to_shrink(bench: Bench, tmp_path: Path) -> None:
    small = replace(bench, cell=replace(bench.cell, machine=replace(probe(), device="cpu", memory_gb=0.1)))
    with pytest.raises(SmokeError, match=r"^it takes \d+ MB of memory, 92 MB are there: make it smaller$"):
        small.smoke(candidate(), tmp_path / "smoke", "1e9flop", SLOT)


@pytest.mark.parametrize(
    ("pace", "seconds"),
    [(Pace(), 2), (Pace(smoke=0.6), 2), (Pace(smoke=0.01), 0)],
    ids=["baseline", "three-times-the-baseline", "least"],
)
def test_a_smoke_run_that_hangs_is_ended(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: Pace, seconds: int
) -> None:
    monkeypatch.setattr("agent.smoke.SMOKE_SECONDS", 0.3)
    hung = candidate(("import torch\n", WITH_TIME + "time.sleep(1000)\n"))
    began = time.monotonic()
    with pytest.raises(SmokeError, match=rf"^two small steps fail \(timed out after {seconds} s\)"):
        replace(bench, pace=pace).smoke(hung, tmp_path / "smoke", "1e9flop", SLOT)
    assert time.monotonic() - began < seconds + 5


def test_nothing_is_left_running(bench: Bench, tmp_path: Path) -> None:
    daemon = 'import subprocess; subprocess.Popen(["sleep", "31.4159"], start_new_session=True)\n    step = 0'
    run = train(bench, candidate(("step = 0", daemon)), tmp_path / "run")
    assert run.metrics is not None
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "31.4159" not in listing


def test_the_smoke_run_counts_whole_steps_however_many_batches_they_accumulate(bench: Bench, tmp_path: Path) -> None:
    every_fifth = candidate(
        (
            "        optimizer.step()\n        optimizer.zero_grad()\n",
            "        if step % 5 == 4:\n            optimizer.step()\n",
        ),
        ("prepare.finish(model, config)", "print('draws', step)\n    prepare.finish(model, config)"),
    )
    smoke = bench.smoke(every_fifth, tmp_path / "smoke", "1e9flop", SLOT)
    assert smoke is not None
    assert smoke.flop_per_token == PER_TOKEN
    assert "draws 10" in (tmp_path / "smoke" / "run.log").read_text()


def test_training_on_after_the_budget_is_late(bench: Bench, tmp_path: Path) -> None:
    stash = "import time; time.sleep(9)\n    prepare.finish(model, config)"
    run = train(
        bench,
        candidate(
            ("while (batch", "for batch in [feed.next(BATCH, feed.max_seq_len)]:\n        pass\n    if (batch"),
            ("prepare.finish(model, config)", stash),
        ),
        tmp_path / "run",
        "2s",
    )
    assert run.metrics is None
    assert "s after the end of training, 5.0 s are allowed" in run.failure


@pytest.mark.parametrize("depth", ["1.5", "(1, 2)", "'deep'"])
def test_what_a_model_says_of_itself_cannot_stop_the_session(bench: Bench, tmp_path: Path, depth: str) -> None:
    odd = candidate(("depth: int = 1", f"depth: object = {depth}"))
    assert train(bench, odd, tmp_path / "run").failure == ""


def test_a_fault_of_the_harness_is_not_blamed_on_the_candidate(bench: Bench, tmp_path: Path) -> None:
    without_data = replace(bench, cell=replace(bench.cell, data=tmp_path / "nowhere"))
    with pytest.raises(
        StateError, match="feed: expected the process that owns the data to end well, found: FileNotFound"
    ):
        train(without_data, candidate(), tmp_path / "run")


def test_cancelled_while_being_scored_is_cancelled(bench: Bench, tmp_path: Path) -> None:
    slow = candidate(
        (
            "return self.head(self.table(idx))",
            "import time; time.sleep(0 if self.training else 2); return self.head(self.table(idx))",
        )
    )
    cancel = threading.Event()

    def watch() -> None:
        while not (tmp_path / "run" / "score.log").exists():
            time.sleep(0.05)
        cancel.set()

    threading.Thread(target=watch).start()
    run = bench.run(slow, tmp_path / "run", seed=1, budget="20steps", smoke=None, slot=SLOT, cancel=cancel)
    assert run.execution.ending is Ending.CANCELLED


def test_what_is_scored_costs_no_more_than_what_a_gpu_was_to_train(bench: Bench, tmp_path: Path) -> None:
    """The trial is told of a GPU and trains on the CPU's constants: another model than the one that was looked at."""
    narrow = "WIDTH = 8 if prepare.machine().type == 'cuda' else 16"
    tried = candidate(
        ("BATCH = 8\n", f"BATCH = 8\n{narrow}\n"),
        ("config.vocab_size, 16)", "config.vocab_size, WIDTH)"),
        ("nn.Linear(16,", "nn.Linear(WIDTH,"),
    )
    gpu = replace(bench, cell=replace(bench.cell, machine=replace(probe(), device="cuda", memory_gb=80.0)))
    smoke = gpu.smoke(tried, tmp_path / "smoke", "20s", SLOT)
    run = train(gpu, tried, tmp_path / "run", smoke=smoke)
    said = "FLOPs: expected 4112 for a token's forward pass, as in the smoke run, found 8224 in scoring; "
    assert run.failure.startswith(said)


def test_an_estimate_of_memory_is_measured_on_the_baseline(bench: Bench) -> None:
    log, smoke = Path("run.log"), Smoke(6e8, 2e8, 0.0, 4096, 80_000.0, 9.0)
    metrics = Metrics(1.0, 300.0, 330.0, 45_000.0, 40.0, 500.0, 953, 50.3, 8)
    trained = Run(42, "300s", Execution(Ending.EXITED, 0, None, 310.0, 1000.0, log, 0.0), metrics, "")
    gpu = replace(bench, cell=replace(bench.cell, machine=replace(probe(), device="cuda")))
    assert gpu.paced(smoke, trained).pace == Pace(9.0, 310.0, 20.0, 0.0, 80_000.0, 45_000.0)
    assert bench.paced(smoke, trained).pace.peak_mb is None
    assert bench.paced(None, trained).pace == Pace(train=310.0)


def test_the_real_script_from_its_smoke_run_to_a_score(bench: Bench, tmp_path: Path) -> None:
    tried = candidate(text=(ROOT / "train.py").read_text())
    smoke = bench.smoke(tried, tmp_path / "smoke", "1e12flop", SLOT)
    assert smoke is not None
    assert smoke.flop_per_token
    run = train(bench, tried, tmp_path / "run", "4steps", smoke)
    assert run.failure == ""
    assert run.metrics is not None
    assert run.metrics.num_steps == 4
    assert run.tflop == pytest.approx(smoke.flop_per_token * 4 * 16 * 64 / 1e12)
