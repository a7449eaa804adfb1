"""What is found out before a GPU is used: on this machine, told that it has one. No number of it needs one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.cell import Cell
from agent.config import Task
from agent.errors import SmokeError
from agent.machine import probe
from agent.smoke import GUESSED, Pace, SmokeTest
from agent.values import Candidate
from corpus.build import prepare_data
from sandbox.isolation import detect
from sandbox.pool import Slot
from tests.attacks import metric

ROOT = Path(__file__).parent.parent.parent
TINY = metric.TINY
REAL = (ROOT / "train.py").read_text()
SLOT = Slot(0, "local", {"OMP_NUM_THREADS": "1"})
WIDTH = ("BATCH = 8\n", "BATCH = 8\nWIDTH = 512 if prepare.machine().type == 'cuda' else 16\n")
WIDE = (WIDTH, ("config.vocab_size, 16)", "config.vocab_size, WIDTH)"), ("nn.Linear(16,", "nn.Linear(WIDTH,"))
LOOKED = Pace(smoke=5, memory_mb=1.0, peak_mb=1.0)


def candidate(*edits: tuple[str, str], text: str = TINY) -> Candidate:
    return metric.candidate(edits, text=text)


def smoke_test(data: Path, pace: Pace = LOOKED, device: str = "cuda") -> SmokeTest:
    fixed = {"prepare.py": (ROOT / "prepare.py").read_text()}
    machine = replace(probe(), device=device, memory_gb=80.0)
    return SmokeTest(Task(), fixed, Cell(data, machine, detect()), pace)


def test_a_gpu_s_constants_are_counted_without_it(data: Path, tmp_path: Path) -> None:
    tiny = smoke_test(data, device="cpu").of(candidate(*WIDE), tmp_path / "cpu", "60s", SLOT)
    large = smoke_test(data).of(candidate(*WIDE), tmp_path / "gpu", "60s", SLOT)
    assert tiny.flop_per_token == 6 * 16 * 257
    assert large.flop_per_token == 6 * 512 * 257
    assert large.forward_flop_per_token == 2 * 512 * 257
    assert large.tokens == tiny.tokens


@pytest.mark.slow
def test_a_look_at_shapes_counts_what_real_steps_count(data: Path, tmp_path: Path) -> None:
    """The real script's small constants both ways, with the parts that a GPU takes."""
    text = REAL.replace('if MACHINE.type != "cuda":', "if True:").replace(
        'ON_GPU = MACHINE.type == "cuda"', "ON_GPU = True"
    )
    tried = candidate(text=text.replace('sparse = MACHINE.type == "cpu"', "sparse = False"))
    real = smoke_test(data, device="cpu").of(tried, tmp_path / "real", "60s", SLOT)
    shapes = smoke_test(data).of(tried, tmp_path / "shapes", "60s", SLOT)
    assert real.flop_per_token
    assert replace(shapes, memory_mb=None, seconds=0.0) == replace(real, memory_mb=None, seconds=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("off", "on"),
    [
        ("MATRIX_POLICY = {}", 'MATRIX_POLICY = {"control": {"beta2": {"poles": (0.9, 0.99), "loss_ema": 1.0}}}'),
        ("ARS_LAW = None", "ARS_LAW = {}"),
        ("ART_LAW = None", 'ART_LAW = {"quantile": 0.9}'),
        ("ADAPTIVE = None", 'ADAPTIVE = {"lr": 1.0, "lr_bounds": (0.3, 2.0), "dither": True}'),
    ],
)
def test_each_stabiliser_makes_its_two_steps_here_and_on_a_gpu_s_constants(
    data: Path, tmp_path: Path, off: str, on: str
) -> None:
    assert REAL.count(off) == REAL.count(" = 524288") == 1
    real = REAL.replace(" = 524288", " = 16384")  # two micro steps of these short rows instead of 64
    plain, found = (
        smoke_test(data).of(candidate(text=text), tmp_path / name, "60s", SLOT)
        for name, text in (("plain", real), ("on", real.replace(off, on)))
    )
    guesses = [(tmp_path / name / "shapes.log").read_text().count(GUESSED) for name in ("plain", "on")]
    assert guesses == [2, 2]  # the losses that the first and the last step report
    assert found.flop_per_token == pytest.approx(plain.flop_per_token, rel=1e-3)  # a memory multiplies a little
    assert found.memory_mb is not None


def test_the_real_script_s_gpu_constants(tmp_path: Path) -> None:
    """6 FLOPs a weight, 14 a channel and position that is seen: attention computes its scores again on the way back."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(600):
        (texts / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over it. " * 40)
    data = prepare_data(
        str(texts), cache=tmp_path / "cache", vocab_size=257, max_seq_len=2048, eval_tokens=4096, workers=1,
        progress=False,
    )  # fmt: skip
    found = smoke_test(data).of(candidate(text=REAL), tmp_path / "smoke", "300s", SLOT)
    weights, seen = 8 * (4 + 8) * 512**2 + 257 * 512, 8 * 2048  # SDPA counts a window as a whole row
    assert found.flop_per_token == pytest.approx(6 * weights + 14 * 512 * seen, rel=0.01)
    assert found.forward_flop_per_token == pytest.approx(2 * weights + 4 * 512 * seen, rel=0.01)
    assert found.memory_mb is not None
    assert 10_000 < found.memory_mb < 60_000


ONLY_THERE = "prepare.machine().type == 'cuda'"
STEP = "        loss.backward()\n"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("nn.Linear(16,", f"nn.Linear(16 + ({ONLY_THERE}),"), "must have same reduction dim"),
        pytest.param((STEP, f"        assert not {ONLY_THERE}\n"), "AssertionError", marks=[pytest.mark.slow]),
    ],
    ids=["shape", "assertion"],
)
def test_what_fails_only_with_a_gpu_s_constants(
    data: Path, tmp_path: Path, edit: tuple[str, str], message: str
) -> None:
    smoke_test(data, device="cpu").of(candidate(edit), tmp_path / "cpu", "60s", SLOT)
    with pytest.raises(SmokeError, match=message) as raised:
        smoke_test(data).of(candidate(edit), tmp_path / "gpu", "60s", SLOT)
    assert str(raised.value).startswith("two steps with the constants of a GPU fail (exit 1: ")
    assert "in main" in str(raised.value)
    assert "/torch/" not in str(raised.value)


UNKNOWABLE = [
    (STEP, f"        if {ONLY_THERE}:\n            loss = loss + batch.inputs[batch.inputs > 3].sum()\n{STEP}"),
    (STEP, f"        if {ONLY_THERE}:\n            assert torch.isfinite(loss)\n{STEP}"),
]


@pytest.mark.slow
@pytest.mark.parametrize("edit", UNKNOWABLE, ids=["shape-of-numbers", "assertion-on-a-number"])
def test_what_only_numbers_can_tell_stays_unknown(data: Path, tmp_path: Path, edit: tuple[str, str]) -> None:
    found = smoke_test(data).of(candidate(edit), tmp_path / "seconds", "60s", SLOT)
    assert (found.flop_per_token, found.forward_flop_per_token, found.memory_mb) == (None, None, None)
    assert GUESSED in (tmp_path / "seconds" / "shapes.log").read_text()
    with pytest.raises(SmokeError, match="two steps with the constants of a GPU fail"):
        smoke_test(data).of(candidate(edit), tmp_path / "flop", "1e9flop", SLOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["lr = 0.1 if loss.item() > 3 else 0.2", "print(f'{loss:.4f}') if batch.inputs.numpy().any() else None"]
)
def test_a_number_that_is_asked_for_costs_nobody_a_trial(data: Path, tmp_path: Path, line: str) -> None:
    asks = candidate((STEP, f"{STEP}        {line}\n"))
    found = smoke_test(data).of(asks, tmp_path / "smoke", "60s", SLOT)
    assert found.flop_per_token in (6 * 16 * 257, None)


@pytest.mark.slow
def test_a_forward_pass_that_asks_for_numbers_is_not_compared(data: Path, tmp_path: Path) -> None:
    """A constant is no guess."""
    forward = "return self.head(self.table(idx))"
    asks = candidate((forward, f"assert torch.tensor(3).item() == 3\n        n = int(idx.max())\n        {forward}"))
    found = smoke_test(data).of(asks, tmp_path / "seconds", "60s", SLOT)
    assert (found.flop_per_token, found.forward_flop_per_token) == (6 * 16 * 257, None)
    with pytest.raises(SmokeError, match="only numbers could tell what its forward pass costs"):
        smoke_test(data).of(asks, tmp_path / "flop", "1e9flop", SLOT)


@pytest.mark.slow
def test_memory_of_attention_that_only_a_gpu_fuses_is_unknown(data: Path, tmp_path: Path) -> None:
    forward = "return self.head(self.table(idx))"
    drops = "x = self.table(idx)[:, None]\n        F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)\n        "
    found = smoke_test(data).of(candidate((forward, drops + forward)), tmp_path / "smoke", "60s", SLOT)
    assert found.flop_per_token
    assert found.memory_mb is None


@pytest.mark.slow
def test_an_old_prepare_cannot_look(data: Path, tmp_path: Path) -> None:
    test = smoke_test(data)
    old = test.fixed["prepare.py"].replace('TRIAL.get("shapes")', "False").replace('TRIAL.get("machine")', "False")
    test = replace(test, fixed={"prepare.py": old})
    found = test.of(candidate(), tmp_path / "seconds", "60s", SLOT)
    assert (found.flop_per_token, found.memory_mb) == (None, None)
    with pytest.raises(SmokeError, match="older than this overnight"):
        test.of(candidate(), tmp_path / "flop", "1e9flop", SLOT)


@pytest.mark.slow
def test_a_start_up_that_computes_is_refused_also_where_nothing_can_be_looked_at(data: Path, tmp_path: Path) -> None:
    paced = replace(LOOKED, startup_flop=1.0)
    busy = candidate(
        ("    step = 0", "    x = torch.ones(999, 999) @ torch.ones(999, 999)\n    step = 0"), UNKNOWABLE[0]
    )
    with pytest.raises(SmokeError, match=r"^start-up computes 1.99e\+09 FLOPs before the first batch"):
        smoke_test(data, paced).of(busy, tmp_path / "real", "60s", SLOT)
    there = candidate(
        (
            "    step = 0",
            f"    n = 999 * ({ONLY_THERE}) + 1\n    x = torch.ones(n, n) @ torch.ones(n, n)\n    step = 0",
        )
    )
    with pytest.raises(SmokeError, match=r"^start-up computes 2e\+09 FLOPs before the first batch"):
        smoke_test(data, paced).of(there, tmp_path / "there", "60s", SLOT)


@pytest.mark.slow
def test_a_baseline_that_cannot_be_looked_at_does_not_stop_the_session(data: Path, tmp_path: Path) -> None:
    odd = candidate((STEP, f"        assert not {ONLY_THERE}\n{STEP}"))
    assert smoke_test(data, Pace()).of(odd, tmp_path / "smoke", "60s", SLOT).flop_per_token is None


@pytest.mark.slow
def test_an_estimate_means_what_the_baseline_was_found_to_take(data: Path, tmp_path: Path) -> None:
    hungry = candidate((STEP, f"        held = torch.empty((60 if {ONLY_THERE} else 1) << 27)\n{STEP}"))
    found = smoke_test(data).of(hungry, tmp_path / "fits", "60s", SLOT)
    assert found.memory_mb == pytest.approx(60 * 1024, rel=0.01)  # two of 30 GiB while the second is made
    with pytest.raises(SmokeError, match=r"^it takes 92\d\d\d MB of memory, 81920 MB are there: make it smaller$"):
        smoke_test(data, Pace(5, memory_mb=1000, peak_mb=1500)).of(hungry, tmp_path / "large", "60s", SLOT)
    as_the_baseline = Pace(5, memory_mb=60_000, peak_mb=90_000)
    assert smoke_test(data, as_the_baseline).of(hungry, tmp_path / "as-large", "60s", SLOT).memory_mb
