"""Trains one GPT on one device and hands it to the harness: `python train.py`. The one file the agent edits.

Sections: constants, model, optimizers, schedules, speed, training. Importing this file has no effect. Data, seed,
budget and scoring belong to `prepare.py`; a run ends when the feed says so, and progress is a share of its budget.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import prepare

# ── constants: edit these ─────────────────────────────────────────────────────────────────────────────────────────────

DEVICE = prepare.device()
MACHINE = prepare.machine()  # whose constants count: another one than DEVICE where a session only looks at shapes

# Model. Width is DEPTH * ASPECT_RATIO, rounded up to whole heads.
DEPTH = 8  # range: 2..16
ASPECT_RATIO = 64  # range: 32..128
HEAD_DIM = 128  # range: 64|128
WINDOW_PATTERN = "SSSL"  # range: L|SL|SSL|SSSL
MLP_RATIO = 4  # range: 2..6
NGRAM_ROWS = 0  # range: 0|65536|262144
SOFTCAP = 15.0  # range: 8.0..40.0
DTYPE = "bfloat16"  # range: float32|bfloat16
FLEX_ATTENTION = True  # range: False|True

# Batch, in tokens and in rows.
TOTAL_BATCH_SIZE = 524288  # range: 131072|262144|524288|1048576
DEVICE_BATCH_SIZE = 128  # range: 32|64|128

# Optimizers. Learning rates of AdamW are for width 768 and scaled by width.
EMBEDDING_LR = 0.6  # range: 0.05..2.0 log
NGRAM_LR = 0.6  # range: 0.05..2.0 log
UNEMBEDDING_LR = 0.004  # range: 0.0005..0.05 log
MATRIX_LR = 0.04  # range: 0.005..0.2 log
SCALAR_LR = 0.5  # range: 0.02..2.0 log
WEIGHT_DECAY = 0.2  # range: 0.0..0.6
ADAM_BETAS = (0.8, 0.95)

# Schedules, as shares of the budget.
WARMUP_RATIO = 0.0  # range: 0.0..0.2
WARMDOWN_RATIO = 0.5  # range: 0.2..1.0
FINAL_LR_FRAC = 0.0  # range: 0.0..0.2
MOMENTUM_WARMUP_RATIO = 0.2  # range: 0.0..0.5

if MACHINE.type != "cuda":  # the same knobs for small machines
    DEPTH = 2  # range: 1..8
    ASPECT_RATIO = 80  # range: 32..256
    HEAD_DIM = 80  # range: 32|48|64|80|96|128
    WINDOW_PATTERN = "L"  # range: L|SL|SSL|SSSL
    MLP_RATIO = 4  # range: 2..6
    NGRAM_ROWS = 65536  # range: 0|16384|65536|262144
    SOFTCAP = 15.0  # range: 8.0..40.0
    DTYPE = "float32"  # range: float32|bfloat16
    FLEX_ATTENTION = False  # range: False
    TOTAL_BATCH_SIZE = 4096  # range: 2048|4096|8192|16384
    DEVICE_BATCH_SIZE = 16  # range: 8|16|32|64
    EMBEDDING_LR = 0.6  # range: 0.05..2.0 log
    NGRAM_LR = 0.6  # range: 0.05..2.0 log
    UNEMBEDDING_LR = 0.008  # range: 0.0005..0.05 log
    MATRIX_LR = 0.04  # range: 0.005..0.2 log
    SCALAR_LR = 0.5  # range: 0.02..2.0 log
    WEIGHT_DECAY = 0.1  # range: 0.0..0.6
    ADAM_BETAS = (0.8, 0.95)
    WARMUP_RATIO = 0.0  # range: 0.0..0.2
    WARMDOWN_RATIO = 0.6  # range: 0.2..1.0
    FINAL_LR_FRAC = 0.0  # range: 0.0..0.2
    MOMENTUM_WARMUP_RATIO = 0.2  # range: 0.0..0.5

# ── model ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ON_GPU = MACHINE.type == "cuda"  # where torch's own kernels are faster than ours
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GPTConfig:
    """All that `build_model` needs; JSON can hold every field."""

    vocab_size: int
    seq_len: int
    depth: int
    width: int
    heads: int
    mlp_width: int
    windows: tuple[int, ...]  # tokens each layer looks back, itself included
    ngram_rows: int  # rows of each hashed n-gram table; 0: none
    softcap: float
    dtype: str


def configure(vocab_size: int, seq_len: int) -> GPTConfig:
    """The constants above as a GPTConfig. Pattern: L sees the whole row, S half a row; the last layer is L."""
    heads = -(-DEPTH * ASPECT_RATIO // HEAD_DIM)
    spans = {"L": seq_len, "S": seq_len // 2}
    windows = [spans[WINDOW_PATTERN[i % len(WINDOW_PATTERN)]] for i in range(DEPTH - 1)] + [seq_len]
    width = heads * HEAD_DIM
    return GPTConfig(
        vocab_size, seq_len, DEPTH, width, heads, MLP_RATIO * width, tuple(windows), NGRAM_ROWS, SOFTCAP, DTYPE
    )


class Linear(nn.Linear):
    """No bias; float32 weights, used in the dtype of the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(torch.autograd.Function):
    """x / rms(x) over the last dimension, in half the passes over memory of torch's own, which has no CPU kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = x.size(-1) ** 0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-6)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (grad * y).mean(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without weights. https://arxiv.org/abs/1910.07467"""
    return F.rms_norm(x, (x.size(-1),)) if ON_GPU else RMSNorm.apply(x)


def rotary_tables(seq_len: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos, sin: (1, T, 1, head_dim / 2) float32. https://arxiv.org/abs/2104.09864"""
    frequency = base ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.outer(torch.arange(seq_len), frequency)[None, :, None]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (B, T, H, D), its halves taken as the coordinates of D / 2 points, each turned by its angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def sees(window: int, _batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether `query` sees `key`: itself and the window - 1 positions before it. Signature: FlexAttention's."""
    return (query >= key) & (query - key < window)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, mask: BlockMask | None = None) -> Tensor:
    """q, k, v: (B, H, T, D) -> (B, H, T, D), each position from its window. mask: for FlexAttention, else SDPA."""
    T = q.size(2)
    if mask is not None:
        return flex_attention(q, k, v, block_mask=mask)
    if window >= T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    at = torch.arange(T, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees(window, at, at, at[:, None], at))


class Attention(nn.Module):
    """Causal self-attention; values get a share of the token's value embedding, by head and by gate."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.window = config.heads, config.windows[layer]
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.gate = Linear(GATE_INPUTS, config.heads)

    def forward(self, x: Tensor, value: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | None) -> Tensor:
        """x, value: (B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        qk, v = self.qkv(x).view(B, T, 3 * self.heads, C // self.heads).split((2 * self.heads, self.heads), dim=2)
        gate = 2 * torch.sigmoid(self.gate(x[..., :GATE_INPUTS]))
        v = torch.addcmul(v, gate[..., None], value.view_as(v))
        q, k = norm(rotate(qk, cos, sin)).chunk(2, dim=2)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.window, mask)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class ReluSquared(torch.autograd.Function):
    """relu(x)², https://arxiv.org/abs/2109.08668, with one pass over memory in place of four on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (positive * grad).mul_(2)


class CappedLoss(torch.autograd.Function):
    """Mean cross entropy of capped logits; the gradient is made on the way forward, in chunks that fit a cache.

    raw: (N, V), uncapped; targets: (N,) int64 -> () float32.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, targets: Tensor, cap: float) -> Tensor:
        grads, nats = torch.empty_like(raw), raw.new_zeros((), dtype=torch.float32)
        for start in range(0, len(raw), LOSS_ROWS):
            rows = slice(start, start + LOSS_ROWS)
            target = targets[rows, None]
            s = (
                raw[rows].float() * (2 / cap)
            ).sigmoid_()  # cap·tanh(x / cap) = 2·cap·s - cap, and softmax ignores -cap
            p = s.sub(1).mul_(2 * cap)  # no more than 0 and no less than -2·cap: exp needs no maximum taken off
            picked = p.gather(1, target).sum()
            p.exp_()
            total = p.sum(-1, keepdim=True)
            nats += total.log().sum() - picked
            error = p.div_(total).scatter_add_(1, target, torch.full_like(total, -1))
            grads[rows] = error.mul_(s.addcmul_(s, s, value=-1)).mul_(4 / len(raw))
        ctx.save_for_backward(grads)
        return nats / len(raw)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return grads.mul_(grad), None, None


def capped(raw: Tensor, cap: float) -> Tensor:
    """(..., V) -> float32, softly within ±cap. https://arxiv.org/abs/2408.00118, section 2"""
    return cap * torch.tanh(raw.float() / cap)


LOSS_ROWS = 256  # rows of a chunk: 1 MB of float32 logits at a vocabulary of 1024


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ReluSquared.apply(self.up(x)))


GATE_INPUTS = 32  # channels a value gate looks at
NGRAM_PRIMES = (1, 36313, 27191, 51749)  # hash multipliers by distance: odd, so that each permutes the residues


class GPT(nn.Module):
    """Logits of the next token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.block_masks: dict[int, BlockMask] = {}  # of the windows that FlexAttention serves in training
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        orders = (2, 3) if config.ngram_rows else ()
        sparse = MACHINE.type == "cpu"  # touch only the rows of the batch; where torch.compile works, dense is faster
        self.ngrams = nn.ModuleList(nn.Embedding(config.ngram_rows, config.width, sparse=sparse) for _ in orders)
        self.values = nn.ModuleList(nn.Embedding(config.vocab_size, config.width) for _ in range(config.depth))
        self.attention = nn.ModuleList(Attention(config, layer) for layer in range(config.depth))
        self.mlp = nn.ModuleList(MLP(config) for _ in range(config.depth))
        self.residual_scale = nn.Parameter(torch.ones(config.depth - 1))
        self.input_scale = nn.Parameter(torch.zeros(config.depth - 1))
        self.head = Linear(config.width, config.vocab_size)
        cos, sin = rotary_tables(config.seq_len, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def init_weights(self) -> None:
        """Deviation 1 / sqrt(fan-in) into the blocks, zero out of them: every block starts as the identity."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            if name.startswith("embedding"):
                nn.init.normal_(weight, std=1.0)
            elif name.startswith("values") or name.endswith(("up.weight", "qkv.weight")):
                bound = (3 / weight.size(1)) ** 0.5
                nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.zeros_(weight)

    def embed(self, idx: Tensor) -> Tensor:
        """(B, T) -> (B, T, C): the token's embedding and those of the bigram and trigram that it ends."""
        x = self.embedding(idx)
        key = idx
        for distance, table in enumerate(self.ngrams, start=1):
            key = key + NGRAM_PRIMES[distance] * F.pad(idx, (distance, 0))[:, : idx.size(1)]
            x = x + table(key % self.config.ngram_rows)
        return norm(x.to(DTYPES[self.config.dtype]))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """idx, targets: int64 (B, T) -> logits (B, T, V), or the mean loss (nats) where there are targets."""
        masks = self.block_masks if self.training and idx.size(1) == self.config.seq_len else {}
        x = start = self.embed(idx)
        cos, sin = self.cos[:, : idx.size(1)].to(x.dtype), self.sin[:, : idx.size(1)].to(x.dtype)
        residual, inputs = self.residual_scale.to(x.dtype), self.input_scale.to(x.dtype)
        for i, (attention, mlp, values) in enumerate(zip(self.attention, self.mlp, self.values, strict=True)):
            if i > 0:
                x = residual[i - 1] * x + inputs[i - 1] * start
            x = x + attention(norm(x), values(idx).to(x.dtype), cos, sin, masks.get(attention.window))
            x = x + mlp(norm(x))
        raw, cap = self.head(norm(x)), self.config.softcap
        if targets is None:
            return capped(raw, cap)
        raw, targets = raw.flatten(0, 1), targets.flatten()
        return F.cross_entropy(capped(raw, cap), targets) if ON_GPU else CappedLoss.apply(raw, targets, cap)


def build_model(config: GPTConfig) -> GPT:
    model = GPT(config)
    model.init_weights()
    return model


# ── optimizers ────────────────────────────────────────────────────────────────────────────────────────────────────────

# Polar Express: the best quintic for each of five steps, for singular values from 1e-3, with the paper's safety factor
# 1.01 worked in. https://arxiv.org/abs/2505.16932
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
MUON_MOMENTUM = (0.85, 0.95)  # at the start and after the momentum warm-up. https://kellerjordan.github.io/posts/muon
MUON_BETA2 = 0.95  # of NorMuon's second moment. https://arxiv.org/abs/2510.05491
ADAM_EPS = 1e-10  # https://arxiv.org/abs/1412.6980; far below its 1e-8, for embeddings whose gradients are tiny


def orthogonalise(g: Tensor) -> Tensor:
    """g: (K, m, n) -> (K, m, n), close to U Vᵀ of each matrix's SVD, by odd polynomials: matrix products only."""
    wide = g.size(-2) <= g.size(-1)
    x = g.bfloat16() if g.is_cuda else g
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)  # 2 % of room below 1, as in the paper's code
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x if wide else x.mT).to(g.dtype)


def normalise_variance(update: Tensor, second: Tensor, beta2: float) -> Tensor:
    """NorMuon: rows (or columns) of equal size over time, the matrix's norm unchanged. https://arxiv.org/abs/2510.05491

    update: (K, m, n). second: (K, m, 1) or (K, 1, n), running mean of squares, updated in place.
    """
    dim = -1 if second.size(-1) == 1 else -2
    second.lerp_(update.square().mean(dim, keepdim=True), 1 - beta2)
    scaled = update * second.clamp_min(1e-10).rsqrt()
    return scaled * (update.norm(dim=(-2, -1), keepdim=True) / scaled.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))


def decay_cautiously(weight: Tensor, update: Tensor, rate: float) -> Tensor:
    """The update with weight decay added where both pull the same way. https://arxiv.org/abs/2510.12402

    weight, update: (K, m, n). rate: decay per unit of learning rate.
    """
    return update + rate * weight * (update * weight > 0)


class Muon(torch.optim.Optimizer):
    """Matrices of one shape a group, stacked and stepped as one. Group: lr, momentum, beta2, weight_decay."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None, "gradients are made by backward(), not by a closure"
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if not state:
                state["momentum"] = torch.zeros_like(grads)
                dim = -1 if grads.size(-2) >= grads.size(-1) else -2
                state["second"] = torch.zeros_like(grads.mean(dim, keepdim=True))
            state["momentum"].lerp_(grads, 1 - group["momentum"])
            update = orthogonalise(grads.lerp_(state["momentum"], group["momentum"]))  # Nesterov
            update = normalise_variance(update, state["second"], group["beta2"])
            weights = torch.stack([p.data for p in params])
            update = decay_cautiously(weights, update, group["weight_decay"])
            size = max(1.0, grads.size(-2) / grads.size(-1)) ** 0.5
            torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * size)


class AdamW(torch.optim.AdamW):
    """torch's own, in one pass over memory. Group: lr, betas, weight_decay."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, eps=ADAM_EPS, fused=True)


class SparseAdam(torch.optim.SparseAdam):
    """Adam for the rows that a batch touched, their moments included. Group: lr, betas."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, eps=ADAM_EPS)


OPTIMIZERS = {"muon": Muon, "adamw": AdamW, "sparse_adam": SparseAdam}


def param_groups(model: GPT) -> list[dict[str, Any]]:
    """Every parameter in exactly one group. A group: name, optimizer (a key of OPTIMIZERS), params, its settings."""
    scale = (model.config.width / 768) ** -0.5

    def adamw(name: str, params: Any, lr: float, **settings: Any) -> dict[str, Any]:
        settings = {"betas": ADAM_BETAS, "weight_decay": 0.0} | settings
        return {"name": name, "optimizer": "adamw", "params": list(params), "lr": lr, **settings}

    groups = [
        adamw("embedding", model.embedding.parameters(), EMBEDDING_LR * scale),
        adamw("ngrams", model.ngrams.parameters(), NGRAM_LR * scale),
        adamw("values", model.values.parameters(), EMBEDDING_LR * scale),
        adamw("head", model.head.parameters(), UNEMBEDDING_LR * scale),
        adamw("residual", [model.residual_scale], SCALAR_LR * 0.01),
        adamw("input", [model.input_scale], SCALAR_LR, betas=(0.96, 0.95)),
    ]
    matrices = [p for blocks in (model.attention, model.mlp) for p in blocks.parameters()]
    for shape in sorted({p.shape for p in matrices}):
        same = [p for p in matrices if p.shape == shape]
        settings = {"momentum": MUON_MOMENTUM[0], "beta2": MUON_BETA2, "weight_decay": WEIGHT_DECAY}
        groups.append(
            {"name": f"matrix{tuple(shape)}", "optimizer": "muon", "params": same, "lr": MATRIX_LR, **settings}
        )
    if any(table.sparse for table in model.ngrams):
        groups[1]["optimizer"] = "sparse_adam"
    groups = [group for group in groups if group["params"]]
    assert_partition(model, groups)
    return groups


def assert_partition(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted(id(p) for p in model.parameters()), "each parameter belongs to exactly one group"


def make_optimizers(groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    made = []
    for name, make in OPTIMIZERS.items():
        own = [group | {"base_lr": group["lr"]} for group in groups if group["optimizer"] == name]
        if own:
            made.append(make(own))
    return made


# ── schedules: of progress, the share of the budget used ──────────────────────────────────────────────────────────────


def lr_scale(progress: float) -> float:
    """Up from zero over WARMUP_RATIO, level, down to FINAL_LR_FRAC over WARMDOWN_RATIO."""
    if progress < WARMUP_RATIO:
        return max(progress / WARMUP_RATIO, 0.01)
    left = min(1.0, (1.0 - progress) / WARMDOWN_RATIO) if WARMDOWN_RATIO > 0 else 1.0
    return FINAL_LR_FRAC + (1.0 - FINAL_LR_FRAC) * left


def muon_momentum(progress: float) -> float:
    first, last = MUON_MOMENTUM
    share = min(1.0, progress / MOMENTUM_WARMUP_RATIO) if MOMENTUM_WARMUP_RATIO > 0 else 1.0
    return first + (last - first) * share


def weight_decay(progress: float) -> float:
    return WEIGHT_DECAY * (1.0 - progress)


def set_schedules(optimizers: list[torch.optim.Optimizer], progress: float) -> None:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group["base_lr"] * lr_scale(progress)
        if group["optimizer"] == "muon":
            group["momentum"], group["weight_decay"] = muon_momentum(progress), weight_decay(progress)


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Dense bfloat16 FLOP/s by device name, from the makers' data sheets.
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def peak_flops() -> float:
    """FLOP/s of the device in DTYPE: from the table; measured on a CPU; 0 where neither is known."""
    if DEVICE.type == "cpu":
        x = torch.randn(768, 768, dtype=DTYPES[DTYPE])
        return 2 * 768**3 / min(stopwatch(lambda: x @ x) for _ in range(5))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0)


def stopwatch(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, on a GPU until it has finished there."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def flop_per_token(model: GPT) -> float:
    """Training FLOPs: 6 for each weight of a matrix product, 12 for each channel and position that attention sees."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    return 6 * weights + 12 * model.config.width * sum(model.config.windows)


def collect_garbage_rarely(step: int) -> None:
    """Python's collector would stop the device for nothing: what lives after the first step lives until the end."""
    if step == 1:
        gc.collect()
        gc.freeze()
        gc.disable()
    elif step % 5000 == 0:
        gc.collect()


# --- optional: flex attention (switch: FLEX_ATTENTION) ---
def flex_masks(config: GPTConfig) -> dict[int, BlockMask]:
    """Masks of the windows for which a stopwatch finds FlexAttention faster than SDPA on this GPU, by window."""
    masks, shape = {}, (DEVICE_BATCH_SIZE, config.heads, config.seq_len, config.width // config.heads)
    q, k, v = (torch.randn(shape, device=DEVICE, dtype=DTYPES[DTYPE], requires_grad=True) for _ in range(3))

    def seconds(mask: BlockMask | None, window: int) -> float:
        form = torch.compile(attend)
        runs = [stopwatch(lambda: form(q, k, v, window, mask).sum().backward()) for _ in range(6)]
        return min(runs[2:])  # the first ones compile

    for window in {window for window in config.windows if window < config.seq_len}:
        mask = create_block_mask(partial(sees, window), None, None, config.seq_len, config.seq_len, device=DEVICE)
        if seconds(mask, window) < seconds(None, window):
            masks[window] = mask
    return masks


# --- end optional ---


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LOG_EVERY = 10  # steps


def fail_fast(loss: float, vocab_size: int) -> None:
    """Exit 1 when training is lost: no number, or a loss far worse than guessing."""
    if not math.isfinite(loss):
        sys.exit("FAIL: loss is nan")
    if loss > 2 * math.log(vocab_size):
        sys.exit("FAIL: loss exploded")


def prepare_step(model: GPT, feed: prepare.Feed) -> nn.Module:
    """The module that training calls. On CUDA compiled, and warmed up on random tokens before the clock starts."""
    if DEVICE.type != "cuda":
        return model
    if FLEX_ATTENTION:
        model.block_masks = flex_masks(model.config)
    compiled = torch.compile(model)
    for _ in range(3):
        compiled(*feed.warmup(split_batch(model.config.seq_len)[0], model.config.seq_len)).backward()
    model.zero_grad()
    return compiled


def split_batch(length: int) -> tuple[int, int]:
    """TOTAL_BATCH_SIZE tokens as (rows of a micro step, micro steps), with no more rows than DEVICE_BATCH_SIZE."""
    rows = max(1, min(DEVICE_BATCH_SIZE, TOTAL_BATCH_SIZE // length))
    return rows, max(1, TOTAL_BATCH_SIZE // (rows * length))


def accumulate(model: nn.Module, feed: prepare.Feed, length: int) -> Tensor | None:
    """Gradients of one optimizer step, TOTAL_BATCH_SIZE tokens; the mean loss, or None when the budget is used up."""
    rows, micro_steps = split_batch(length)
    total = torch.zeros((), device=DEVICE)
    for _ in range(micro_steps):
        batch = feed.next(rows, length)
        if batch is None:
            return None
        loss = model(batch.inputs, batch.targets) / micro_steps
        loss.backward()
        total += loss.detach()
    return total


def main() -> None:
    torch.manual_seed(prepare.SEED)
    torch.set_float32_matmul_precision("high")
    feed = prepare.open_feed()
    config = configure(feed.vocab_size, feed.max_seq_len)
    model = build_model(config).to(DEVICE)
    optimizers = make_optimizers(param_groups(model))
    peak = peak_flops()
    step_model = prepare_step(model, feed)

    def report(step: int, loss: Tensor) -> None:
        nats = loss.item()
        fail_fast(nats, config.vocab_size)
        done = feed.tokens - split_batch(config.seq_len)[0] * config.seq_len  # feed.seconds: when the last batch came
        mfu = 100 * flop_per_token(model) * done / (peak * feed.seconds) if peak and feed.seconds else 0.0
        prepare.log(step=step, loss=nats, lr_scale=lr_scale(feed.progress), mfu=mfu)

    step, last = 0, None
    while (loss := accumulate(step_model, feed, config.seq_len)) is not None:
        set_schedules(optimizers, feed.progress)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, last = step + 1, loss
        collect_garbage_rarely(step)
        if step % LOG_EVERY == 0:
            report(step, loss)
    if last is not None:
        report(step, last)
    prepare.finish(model, config)


if __name__ == "__main__":
    main()
