"""train.py as a harness and an editor see it: shapes, causality, groups, learning, determinism, endings."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prepare
import train

ROOT = Path(train.__file__).parent
VOCAB, LENGTH = 61, 32


def tiny(**changes: Any) -> train.GPTConfig:
    config = dataclasses.replace(
        train.configure(VOCAB, LENGTH),
        depth=2,
        width=32,
        heads=2,
        mlp_width=64,
        windows=(8, LENGTH),
        ngram_rows=64,
        dtype="float32",
    )
    return dataclasses.replace(config, **changes)


def awake(config: train.GPTConfig | None = None, seed: int = 0) -> train.GPT:
    """A model none of whose parameters is zero, so that every path reaches the logits."""
    torch.manual_seed(seed)
    model = train.build_model(config or tiny())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def learn(model: train.GPT, steps: int, seed: int = 0) -> list[float]:
    """Losses of a few steps on one batch, with the file's own optimizers."""
    optimizers = train.make_optimizers(train.param_groups(model))
    batch, losses = tokens(8, LENGTH + 1, seed), []
    for step in range(steps):
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        train.set_schedules(optimizers, step / steps)
        for optimizer in optimizers:
            train.step_with(optimizer, loss.detach())
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# ── model ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 5, LENGTH])
def test_logits_have_one_row_per_position(length: int) -> None:
    logits = awake()(tokens(2, length))
    assert logits.shape == (2, length, VOCAB)
    assert logits.isfinite().all()
    assert logits.abs().max() <= train.SOFTCAP


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ngram_rows", [0, 64])
def test_a_later_token_changes_no_earlier_logits(dtype: str, ngram_rows: int) -> None:
    model, idx = awake(tiny(dtype=dtype, ngram_rows=ngram_rows)), tokens()
    before = model(idx)
    for at in (1, 7, LENGTH - 1):
        changed = idx.clone()
        changed[:, at] = (changed[:, at] + 1) % VOCAB
        after = model(changed)
        assert torch.equal(before[:, :at], after[:, :at])
        assert not torch.allclose(before[:, at], after[:, at])


def test_rows_do_not_mix() -> None:
    model, idx = awake(), tokens()
    changed = idx.clone()
    changed[1] = tokens(1, seed=9)[0]
    before, after = model(idx), model(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])
    assert torch.allclose(model(idx[:1]), before[:1], atol=1e-5)


def test_a_window_hides_what_lies_before_it() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 16, 8).unbind(0)
    moved = v.clone()
    moved[:, :, 3] += 1.0
    changed = (train.attend(q, k, v, 4) != train.attend(q, k, moved, 4)).any(-1).flatten().nonzero().flatten()
    assert changed.tolist() == [3, 4, 5, 6]


def test_a_window_of_the_whole_row_is_plain_causal_attention() -> None:
    q, k, v = torch.randn(3, 2, 2, 16, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    distance = torch.arange(16)[:, None] - torch.arange(16)
    scores = (q @ k.mT / 8**0.5).masked_fill(distance < 0, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(train.attend(q, k, v, 16), scores)


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    model, batch = awake(), tokens(2, LENGTH + 1)
    logits = model(batch[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    torch.testing.assert_close(model(batch[:, :-1], batch[:, 1:]), expected)


def test_config_and_weights_survive_json_and_safetensors() -> None:
    model, idx = awake(), tokens()
    config = train.GPTConfig(**json.loads(json.dumps(dataclasses.asdict(model.config))))
    twin = train.build_model(config)
    twin.load_state_dict(load(save({name: t.contiguous() for name, t in model.state_dict().items()})), strict=True)
    assert torch.equal(twin.eval()(idx), model(idx))


def test_the_constants_make_a_config_of_whole_heads() -> None:
    config = train.configure(1024, 256)
    assert config.depth == train.DEPTH == len(config.windows)
    assert config.width % config.heads == 0
    assert config.windows[-1] == 256


@pytest.mark.parametrize(
    ("fused", "plain", "shape"),
    [
        (train.RMSNorm.apply, lambda x: torch.nn.functional.rms_norm(x, (x.size(-1),)), (3, 5, 16)),
        (
            lambda x: train.CappedLoss.apply(x, torch.arange(len(x)) % VOCAB, 15.0),
            lambda x: torch.nn.functional.cross_entropy(train.capped(x, 15.0), torch.arange(len(x)) % VOCAB),
            (2 * 256 + 3, VOCAB),
        ),
    ],
    ids=["norm", "loss"],
)
def test_fused_pieces_agree_with_plain_ones(fused: Any, plain: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start = 5 * torch.randn(shape)
    found, expected = start.clone().requires_grad_(), start.clone().requires_grad_()
    out, reference = fused(found), plain(expected)
    weights = torch.randn_like(reference)
    (out * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(out, reference)
    torch.testing.assert_close(found.grad, expected.grad)


# ── optimizers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = train.build_model(tiny())
    groups = train.param_groups(model)
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())
    assert {group["optimizer"] for group in groups} <= set(train.OPTIMIZERS)
    model.attention.extend([torch.nn.Linear(3, 3)])
    model.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="exactly one group"):
        train.param_groups(model)


@pytest.mark.parametrize("shape", [(2, 24, 24), (1, 16, 64), (3, 64, 16)])
def test_orthogonalise_is_close_to_the_polar_factor(shape: tuple[int, int, int]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    found = train.orthogonalise(g)
    size = (u @ vt).norm(dim=(-2, -1))
    assert ((found - u @ vt).norm(dim=(-2, -1)) / size).max() < 0.2  # what five of the paper's steps leave
    assert (torch.linalg.svdvals(found) - 1).abs().median() < 0.15


def test_variance_normalisation_keeps_the_norm_and_levels_the_rows() -> None:
    update = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)[:, None]
    expected = update.square().mean(-1, keepdim=True)
    second = torch.zeros(2, 12, 1)
    found = train.normalise_variance(update, second, beta2=0.95)
    torch.testing.assert_close(second, 0.05 * expected)
    torch.testing.assert_close(found.norm(dim=(-2, -1)), update.norm(dim=(-2, -1)))
    rows = found.norm(dim=-1)
    assert (rows.amax(-1) / rows.amin(-1)).max() < 1.01


def test_decay_is_cautious() -> None:
    weight = torch.tensor([[[1.0, 1.0, -2.0]]])
    update = torch.tensor([[[0.5, -0.5, -1.0]]])
    torch.testing.assert_close(train.decay(weight, update, 0.1), torch.tensor([[[0.6, -0.5, -1.2]]]))


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("total", "device", "length", "expected"),
    [(4096, 16, 256, (16, 1)), (16384, 16, 256, (16, 4)), (2048, 16, 256, (8, 1)), (128, 16, 256, (1, 1))],
)
def test_a_batch_is_split_without_losing_tokens(
    total: int, device: int, length: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TOTAL_BATCH_SIZE", total)
    monkeypatch.setattr(train, "DEVICE_BATCH_SIZE", device)
    assert train.split_batch(length) == expected


def test_the_loss_falls() -> None:
    torch.manual_seed(0)
    losses = learn(train.build_model(tiny()), steps=20)
    assert losses[-1] < losses[0] - 0.5


def test_the_same_seed_gives_the_same_losses() -> None:
    def losses(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return learn(train.build_model(tiny()), steps=4)

    assert losses(1) == losses(1)
    assert losses(1)[1:] != losses(2)[1:]


def test_schedules() -> None:
    shares = [i / 100 for i in range(101)]
    scales = [train.lr_scale(share) for share in shares]
    assert max(scales) == 1.0
    assert scales[-1] == pytest.approx(train.FINAL_LR_FRAC)
    assert all(later <= earlier for earlier, later in zip(scales[-20:], scales[-19:], strict=False))
    assert [train.muon_momentum(share) for share in (0.0, 1.0)] == list(train.MUON_MOMENTUM)
    optimizers = train.make_optimizers(train.param_groups(train.build_model(tiny())))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for progress, decay in ((0.0, train.WEIGHT_DECAY), (0.5, train.WEIGHT_DECAY / 2), (1.0, 0.0)):
        train.set_schedules(optimizers, progress, factor=0.5)
        assert all(group["lr"] == 0.5 * group["base_lr"] * train.lr_scale(progress) for group in groups)
        matrices = [group for group in groups if group["optimizer"] == "muon"]
        assert {(group["weight_decay"], group["progress"]) for group in matrices} == {(decay, progress)}


@pytest.mark.parametrize(
    ("loss", "message"), [(float("nan"), "FAIL: loss is nan"), (float("inf"), "FAIL: loss is nan"), (99.0, "exploded")]
)
def test_a_lost_training_stops_at_once(loss: float, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        train.fail_fast(loss, VOCAB)
    train.fail_fast(4.0, VOCAB)


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_a_cpu_is_measured(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "device", lambda: torch.device("cpu"))
    assert 1e8 < prepare.peak_flops(train.DTYPES[dtype]) < 1e15


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce GTX 1080", 0.0),
    ],
)
def test_the_peak_of_a_gpu_is_looked_up_by_its_name(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert prepare.peak_flops(torch.float32) == peak


def test_the_peak_of_another_device_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "device", lambda: torch.device("mps"))
    assert prepare.peak_flops(torch.float32) == 0.0


def test_flops_of_a_token_are_those_that_torch_counts() -> None:
    model, batch = awake(tiny(windows=(LENGTH, LENGTH))).train(), tokens(4, LENGTH + 1)
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # torch counts no fused kernel of CPUs
        model(batch[:, :-1], batch[:, 1:]).backward()
    assert train.flop_per_token(model) == pytest.approx(counter.get_total_flops() / (4 * LENGTH), rel=0.01)


def test_a_narrow_window_is_charged_for_what_it_sees() -> None:
    whole, narrow = (train.flop_per_token(train.build_model(tiny(windows=(w, LENGTH)))) for w in (LENGTH, 8))
    assert whole - narrow == 12 * 32 * (LENGTH - 8)


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_live_constant_is_a_literal_with_a_range_and_small_machines_have_the_same_names() -> None:
    source = (ROOT / "train.py").read_text()
    tree = ast.parse(source)
    small = next(n for n in tree.body if isinstance(n, ast.If) and "cuda" in ast.unparse(n.test)).body
    names = [n.targets[0].id for n in small if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    large = {n.targets[0].id: n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    assert len(names) == len(small)
    assert set(names) <= set(large)
    for node in [*small, *(large[name] for name in names)]:
        ast.literal_eval(node.value)
        assert isinstance(node.value, ast.Tuple) or "# range: " in source.splitlines()[node.lineno - 1]


def test_importing_has_no_effect(tmp_path: Path) -> None:
    code = "import train, os; print(sorted(os.listdir('.')))"
    found = python(["-c", code], tmp_path, OVERNIGHT_CACHE=str(tmp_path / "none"))
    assert (found.returncode, found.stdout, found.stderr) == (0, "[]\n", "")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set: some of this repository's own text."""
    folder = tmp_path_factory.mktemp("data")
    for i, path in enumerate(sorted(ROOT.glob("**/*.py"))[:60]):
        (folder / f"{i}.txt").write_text(path.read_text())
    cache = tmp_path_factory.mktemp("cache")
    options = ["--dataset", str(folder), "--vocab-size", "512", "--seq-len", "64", "--eval-tokens", "4096", "--small"]
    made = python([str(ROOT / "prepare.py"), *options], cache, OVERNIGHT_CACHE=str(cache))
    assert made.returncode == 0, made.stderr
    return cache


def python(arguments: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_by_hand_it_trains_and_prints_the_summary(cache: Path, tmp_path: Path) -> None:
    run = python([str(ROOT / "train.py")], tmp_path, OVERNIGHT_CACHE=str(cache), OVERNIGHT_BUDGET="12steps")
    assert run.returncode == 0, run.stderr
    summary = dict(line.split(":") for line in run.stdout.rpartition("---\n")[2].splitlines() if ":" in line)
    assert 0.0 < float(summary["val_bpb"]) < 8.0
    assert float(summary["total_tokens_M"]) > 0.0
    assert int(summary["depth"]) == train.DEPTH
    assert 0.0 < float(summary["mfu_percent"]) < 100.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("switch", "setting"),
    [
        (
            "MATRIX_POLICY",
            {"trust": "layerwise", "control": {"update_multiplier": {"poles": (0.5, 2), "step_fraction": 4}}},
        ),
        ("ARS_LAW", {"scaled": True, "alpha": 0.3}),
        ("ART_LAW", {"quantile": 0.5, "creations": 2}),
        ("ADAPTIVE", {"window": 3, "kappa": 0.0}),
    ],
)
def test_each_stabiliser_trains_by_hand(cache: Path, tmp_path: Path, switch: str, setting: dict[str, Any]) -> None:
    def losses(code: str) -> list[float]:
        code = f"import train; {code}; train.LOG_LINES = 6; train.TOTAL_BATCH_SIZE = 1024; train.main()"
        run = python(["-c", code], tmp_path, OVERNIGHT_CACHE=str(cache), OVERNIGHT_BUDGET="24steps")
        assert run.returncode == 0, run.stderr
        return [float(found) for found in re.findall(r"loss[:= ]+([0-9.]+)", run.stdout)]

    on, plain = losses(f"train.{switch} = {setting!r}"), losses("pass")
    assert on[-1] < on[0] - 0.3
    assert on[-1] != plain[-1]


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(cache: Path, tmp_path: Path) -> None:
    code = "import train; train.MATRIX_LR = float('nan'); train.main()"
    run = python(["-c", code], tmp_path, OVERNIGHT_CACHE=str(cache), OVERNIGHT_BUDGET="20steps")
    assert run.returncode == 1
    assert run.stderr.strip() == "FAIL: loss is nan"
    assert "val_bpb" not in run.stdout
