"""Trains one GPT on one device and hands it to the harness: `python train.py`. The one file the agent edits.

Importing it has no effect. Data, seed, budget and scoring belong to `prepare.py`; a run ends when the feed says so.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial, partialmethod
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
# Stabilisers. None: off, else settings; docs/optimizers says what they did and did not do.
MATRIX_POLICY = {}  # fields of MatrixPolicy; {}: plain Muon
ARS_LAW = None  # arguments of ARS
ART_LAW = None  # arguments of ARTMemory
ADAPTIVE = None  # arguments of AdaptiveScheduler, whose lr here is a factor on the schedule's

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

GATE_INPUTS = 32  # range: fixed; channels a value gate looks at
NGRAM_PRIMES = (1, 36313, 27191, 51749)  # hash multipliers by distance: odd, so that each permutes the residues
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
    windows = (*(spans[WINDOW_PATTERN[i % len(WINDOW_PATTERN)]] for i in range(DEPTH - 1)), seq_len)
    width = heads * HEAD_DIM
    return GPTConfig(vocab_size, seq_len, DEPTH, width, heads, MLP_RATIO * width, windows, NGRAM_ROWS, SOFTCAP, DTYPE)


class Linear(nn.Linear):  # no bias; float32 weights, used in the dtype of the input
    __init__ = partialmethod(nn.Linear.__init__, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(torch.autograd.Function):  # in half the passes over memory of torch's own, which has no CPU kernel
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = x.size(-1) ** 0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-6)
        ctx.save_for_backward(y := x * scale, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).mean(-1, keepdim=True), value=-1).mul_(scale)


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
    if mask is not None:
        return flex_attention(q, k, v, block_mask=mask)
    if window >= q.size(2):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    at = torch.arange(q.size(2), device=q.device)
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


class CappedLoss(torch.autograd.Function):
    """Mean cross entropy of capped logits; the gradient is made on the way forward, in chunks that fit a cache.
    raw: (N, V), uncapped; targets: (N,) int64 -> () float32."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, targets: Tensor, cap: float) -> Tensor:
        grads, nats = torch.empty_like(raw), raw.new_zeros((), dtype=torch.float32)
        for x, target, grad in zip(raw.split(256), targets[:, None].split(256), grads.split(256), strict=True):
            s = (x.float() * (2 / cap)).sigmoid_()  # cap·tanh(x / cap) = 2·cap·s - cap, and softmax ignores -cap
            p = s.sub(1).mul_(2 * cap)  # no more than 0 and no less than -2·cap: exp needs no maximum taken off
            nats -= p.gather(1, target).sum()
            total = p.exp_().sum(-1, keepdim=True)
            nats += total.log().sum()
            error = p.div_(total).scatter_add_(1, target, torch.full_like(total, -1))
            grad.copy_(error.mul_(s.addcmul_(s, s, value=-1)).mul_(4 / len(raw)))
        ctx.save_for_backward(grads)
        return nats / len(raw)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0].mul_(grad), None, None


def capped(raw: Tensor, cap: float) -> Tensor:
    """(..., V) -> float32, softly within ±cap. https://arxiv.org/abs/2408.00118, section 2"""
    return cap * torch.tanh(raw.float() / cap)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.width, config.mlp_width)
        self.down = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())  # https://arxiv.org/abs/2109.08668


class GPT(nn.Module):
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
        self.init_weights()

    def init_weights(self) -> None:
        """Deviation 1 / sqrt(fan-in) into the blocks, zero out of them: every block starts as the identity."""
        for name, weight in ((name, p) for name, p in self.named_parameters() if p.dim() > 1):
            if name.startswith("embedding"):
                nn.init.normal_(weight, std=1.0)
            elif name.startswith("values") or name.endswith(("up.weight", "qkv.weight")):
                bound = (3 / weight.size(1)) ** 0.5
                nn.init.uniform_(weight, -bound, bound)
            else:
                nn.init.zeros_(weight)

    def embed(self, idx: Tensor) -> Tensor:
        """(B, T) -> (B, T, C): the token's embedding and those of the bigram and trigram that it ends."""
        x, key = self.embedding(idx), idx
        for distance, table in enumerate(self.ngrams, start=1):
            key = key + NGRAM_PRIMES[distance] * F.pad(idx, (distance, 0))[:, : idx.size(1)]
            x = x + table(key % self.config.ngram_rows)
        return norm(x.to(DTYPES[self.config.dtype]))

    def forward(self, idx: Tensor, targets: Tensor | None = None, return_hidden: bool = False) -> Any:
        """idx, targets: (B, T) int64 -> logits (B, T, V) or the mean loss (nats); and what the head sees, (B, T, C)."""
        masks = self.block_masks if self.training and idx.size(1) == self.config.seq_len else {}
        x = start = self.embed(idx)
        cos, sin = self.cos[:, : idx.size(1)].to(x.dtype), self.sin[:, : idx.size(1)].to(x.dtype)
        residual, inputs = self.residual_scale.to(x.dtype), self.input_scale.to(x.dtype)
        for i, (attention, mlp, values) in enumerate(zip(self.attention, self.mlp, self.values, strict=True)):
            if i > 0:
                x = residual[i - 1] * x + inputs[i - 1] * start
            x = x + attention(norm(x), values(idx).to(x.dtype), cos, sin, masks.get(attention.window))
            x = x + mlp(norm(x))
        hidden = norm(x)
        raw, cap = self.head(hidden), self.config.softcap
        if targets is None:
            out = capped(raw, cap)
        elif ON_GPU:
            out = F.cross_entropy(capped(raw, cap).flatten(0, 1), targets.flatten())
        else:
            out = CappedLoss.apply(raw.flatten(0, 1), targets.flatten(), cap)
        return (out, hidden) if return_hidden else out


def build_model(config: GPTConfig) -> GPT:
    return GPT(config)


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
ADAM_EPS = 1e-10  # https://arxiv.org/abs/1412.6980; far below its 1e-8, for embeddings whose gradients are tiny
norms = partial(torch.linalg.matrix_norm, keepdim=True)  # Frobenius', (K, m, n) -> (K, 1, 1)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """g: (K, m, n) -> (K, m, n), close to U Vᵀ of each matrix's SVD, by odd polynomials: matrix products only."""
    wide = g.size(-2) <= g.size(-1)
    x = g.bfloat16() if g.is_cuda else g
    x = x if wide else x.mT
    x = x / (norms(x) * 1.02 + 1e-6)  # 2 % of room below 1, as in the paper's code
    for a, b, c in (POLAR_EXPRESS + POLAR_EXPRESS[-1:] * 2)[: int(steps)]:
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x if wide else x.mT).to(g.dtype)


def normalise_variance(update: Tensor, second: Tensor, beta2: Any) -> Tensor:
    """NorMuon: rows (or columns) of equal size over time, the matrix's norm unchanged. https://arxiv.org/abs/2510.05491
    update: (K, m, n). second: (K, m, 1) or (K, 1, n), running mean of squares, updated in place."""
    dim = -1 if second.size(-1) == 1 else -2
    second.lerp_(update.square().mean(dim, keepdim=True), 1 - beta2)
    scaled = update * second.clamp_min(1e-10).rsqrt()
    return scaled * (norms(update) / norms(scaled).clamp_min(1e-10))


def decay(weight: Tensor, update: Tensor, rate: float, cautious: bool = True) -> Tensor:
    """The update with weight decay, if cautious only where both pull one way. (K, m, n). https://arxiv.org/abs/2510.12402"""
    return update + rate * weight * ((update * weight > 0) if cautious else 1)


def check(owner: str, name: str, value: Any, *allowed: Any) -> None:
    """ValueError unless value is one of `allowed`, or within them where they are two numbers."""
    words = len(allowed) != 2 or isinstance(allowed[0], str | bool)
    if not (value in allowed if words else isinstance(value, int | float) and allowed[0] <= value <= allowed[1]):
        raise ValueError(f"{owner}: expected {name} {'one of' if words else 'within'} {allowed}, found {value!r}")


SENSORS = ("loss_ema", "loss_improvement_ema", "grad_norm_ema", "update_ratio_ema")
SENSORS += ("grad_alignment_ema", "step_fraction")
ACTUATORS = ("update_multiplier", "trust_mix", "clip_threshold", "beta2", "orthogonal_mix")


def within(default: Any, *allowed: Any) -> Any:
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class Checked:  # fields made by `within` hold what it allows, or None where their type does
    def __post_init__(self) -> None:
        for f, value in zip(fields(self), asdict(self).values(), strict=True):
            if f.metadata and not (value is None and "None" in f.type):
                check(type(self).__name__, f.name, value, *f.metadata["allowed"])


@dataclass(frozen=True)
class MatrixPolicy(Checked):
    """How Muon makes its update of a matrix; the default is plain Muon. docs/optimizers/policy.md.
    control: {actuator: {"poles": (conservative, aggressive), "bias": b, sensor: c, …}}: for each matrix the actuator is
    at sigmoid(sharpness · (Σ c · sensor / normaliser + b)) between its poles. normalisers: {sensor: more than 0}."""

    momentum: float | None = within(None, 0, 0.999)  # None: the schedule's
    nesterov: bool = within(True, False, True)
    placement: str = within("before", "before", "after")  # of momentum: over gradients, or over orthogonalised ones
    orthogonalisation: str = within("polar_express", "polar_express", "none")  # none: raw, at an orthogonal one's norm
    ns_steps: int = within(5, *range(1, 8))
    orthogonal_mix: float = within(1.0, 0, 1)  # the rest is the raw update, at the same norm
    beta2: float | None = within(0.95, 0, 0.9999)  # of NorMuon's second moment; None: without
    trust: str = within("none", "none", "layerwise")  # times |weight| / |update|: https://arxiv.org/abs/1708.03888
    trust_low: float = within(0.1, 0.01, 1)
    trust_high: float = within(10.0, 1, 100)
    trust_mix: float = within(1.0, 0, 1)
    update_multiplier: float = within(1.0, 0, 10)
    clip: str = within("none", "none", "update_rms", "global_norm")  # of each matrix, or of all together
    clip_threshold: float = within(1.0, 0.01, 100)  # 1: an orthogonal update, whose RMS is 1 / sqrt(max(m, n))
    decay: str = within("cautious", "none", "decoupled", "cautious")
    sharpness: float = within(1.0, 0, 10)
    ema_beta: float = within(0.9, 0, 0.9999)  # of the sensors
    control: dict[str, dict[str, Any]] = field(default_factory=dict)
    normalisers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = {f.name: f.metadata.get("allowed") for f in fields(self)}
        for name, value in (("control", self.control), ("normalisers", self.normalisers)):
            check("MatrixPolicy", f"type of {name}", type(value), dict)
        for name, value in self.normalisers.items():
            check("MatrixPolicy", "normaliser", name, *SENSORS)
            check("MatrixPolicy", f"normaliser of {name}", value, 1e-8, 1e8)
        for actuator, law in self.control.items():
            check("MatrixPolicy", f"type of the law of {actuator}", type(law), dict)
            wired = {"beta2": self.beta2, "trust_mix": self.trust != "none", "clip_threshold": self.clip != "none"}
            wired |= {"orthogonal_mix": self.orthogonalisation != "none", "update_multiplier": True}
            check("MatrixPolicy", "actuator (of what is switched on)", actuator, *(a for a in ACTUATORS if wired[a]))
            poles = law["poles"] if isinstance(law.get("poles"), list | tuple) else ()
            check("MatrixPolicy", f"number of poles of {actuator}", len(poles), 2, 2)
            for pole in poles:
                check("MatrixPolicy", f"pole of {actuator}", pole, *allowed[actuator])
            for name in law.keys() - {"poles"}:
                check("MatrixPolicy", f"coefficient of {actuator}", name, "bias", *SENSORS)
                check("MatrixPolicy", f"{name} of {actuator}", law[name], -8, 8)

    def actuate(self, sensors: Tensor | None) -> dict[str, Any]:
        """sensors: (K, 6) -> the actuators: (K, 1, 1) where controlled, else numbers."""
        values = {name: value for name, value in asdict(self).items() if name in ACTUATORS}
        for name, law in self.control.items() if sensors is not None else ():
            scaled = (sensors[:, i] * (law.get(s, 0.0) / self.normalisers.get(s, 1.0)) for i, s in enumerate(SENSORS))
            low, high = law["poles"]
            share = torch.sigmoid(self.sharpness * (sum(scaled) + law.get("bias", 0.0)))
            values[name] = (low + (high - low) * share)[:, None, None]
        return values

    def direct(self, update: Tensor, mix: Tensor | float) -> Tensor:
        """The orthogonalised update, the raw one at its norm, or a mix of both. (K, m, n) -> (K, m, n)."""
        if self.orthogonalisation == "none":
            return update * (min(update.shape[1:]) ** 0.5 / norms(update).clamp_min(1e-10))
        orthogonal = orthogonalise(update, self.ns_steps)
        if isinstance(mix, int | float) and mix == 1:
            return orthogonal
        raw = update * (norms(orthogonal) / norms(update).clamp_min(1e-10))
        return raw + mix * (orthogonal - raw)


class Muon(torch.optim.Optimizer):
    """Matrices of one shape a group, stacked and stepped as one, by a policy. https://kellerjordan.github.io/posts/muon
    Group: lr, momentum, weight_decay, progress (the share of the budget used). Sensors need `step(loss=…)`."""

    takes_loss = True

    def __init__(self, groups: Any, policy: MatrixPolicy | dict[str, Any] | None = None) -> None:
        given = asdict(policy) if isinstance(policy, MatrixPolicy) else MATRIX_POLICY if policy is None else policy
        defaults = {"lr": 0.02, "momentum": MUON_MOMENTUM[1], "weight_decay": 0.0, "progress": 0.0}
        super().__init__(groups, defaults | {"policy": asdict(MatrixPolicy(**given))})

    @torch.no_grad()
    def step(self, closure: None = None, *, loss: Tensor | None = None) -> None:
        assert closure is None, "gradients are made by backward(), not by a closure"
        groups = [(group, MatrixPolicy(**group["policy"])) for group in self.param_groups]
        found = [(group, policy, [p for p in group["params"] if p.grad is not None]) for group, policy in groups]
        todo = [(*work, *self.direct(*work, loss)) for work in found if work[2]]
        rows = sum(len(update) * min(update.shape[1:]) for *_, update, _ in todo)
        for group, policy, params, update, limit in todo:
            if policy.clip == "global_norm":
                size = (torch.stack([u.square().sum() for *_, u, _ in todo]).sum() / rows).sqrt()
                update = update * (limit / size.clamp_min(1e-10)).clamp_max(1.0)
            self.apply(group, policy, params, update)

    def direct(self, group: Any, policy: MatrixPolicy, params: list[Tensor], loss: Any) -> tuple[Tensor, Any]:
        """The update of K matrices before decay, (K, m, n), and the threshold that it is to be clipped at."""
        states, update = [self.state[p] for p in params], torch.stack([p.grad for p in params])
        for p, state in zip(params, states, strict=True):
            if not state:
                rows = p.mean(-1 if p.size(-2) >= p.size(-1) else -2, keepdim=True)
                state |= {"momentum": torch.zeros_like(p), "second": torch.zeros_like(rows)}
        sensors = sense(states, update, loss, group["progress"], policy.ema_beta) if policy.control else None
        act = policy.actuate(sensors)
        if policy.placement == "before":
            update = carry(update, states, policy, group["momentum"])
        update = policy.direct(update, act["orthogonal_mix"])
        if policy.placement == "after":
            update = carry(update, states, policy, group["momentum"])
        if policy.beta2 is not None:
            second = torch.stack([state["second"] for state in states])
            update = normalise_variance(update, second, act["beta2"])
            unstack(states, "second", second)
        if policy.trust == "layerwise":
            weights, size = norms(torch.stack(params)), norms(update)
            ratio = torch.where(weights * size > 0, (weights / size).clamp(policy.trust_low, policy.trust_high), 1.0)
            update = update * (1 + act["trust_mix"] * (ratio - 1))
        if policy.control or policy.update_multiplier != 1:
            update = update * act["update_multiplier"]
        if policy.clip == "update_rms":
            size = norms(update) / min(update.shape[1:]) ** 0.5
            update = update * (act["clip_threshold"] / size.clamp_min(1e-10)).clamp_max(1.0)
        return update, act["clip_threshold"]

    def apply(self, group: dict[str, Any], policy: MatrixPolicy, params: list[Tensor], update: Tensor) -> None:
        weights, rate = torch.stack([p.data for p in params]), group["weight_decay"]
        if policy.decay != "none":
            update = decay(weights, update, rate, policy.decay == "cautious")
        step = group["lr"] * max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5
        if policy.control:
            ratio = step * norms(update) / norms(weights)  # infinite where weights are zero: left out
            unstack([self.state[p] for p in params], "ratio", ratio.flatten().float())
        torch._foreach_add_(params, list(update.unbind()), alpha=-step)


def unstack(states: list[dict[str, Any]], name: str, value: Tensor) -> None:
    torch._foreach_copy_([state[name] for state in states], list(value.unbind()))


def carry(update: Tensor, states: list[dict[str, Any]], policy: MatrixPolicy, scheduled: float) -> Tensor:
    beta = scheduled if policy.momentum is None else policy.momentum
    momentum = torch.stack([state["momentum"] for state in states]).lerp_(update, 1 - beta)
    unstack(states, "momentum", momentum)
    return update.lerp(momentum, beta) if policy.nesterov else momentum


def sense(states: list[dict[str, Any]], grads: Tensor, loss: Tensor | None, progress: float, beta: float) -> Tensor:
    """SENSORS of K matrices, (K, 6), as running means, plain ones at first; what is unknown or infinite is left out."""
    for state, grad in zip(states, grads, strict=True):
        if "seen" not in state:
            none = grad.new_full((), torch.nan, dtype=torch.float32)
            state |= {"ratio": none, "loss": none.clone(), "previous": torch.zeros_like(grad)}
            state |= {"seen": torch.zeros_like(none).repeat(5), "means": torch.zeros_like(none).repeat(5)}
    names = ("means", "seen", "previous", "loss", "ratio")
    means, seen, before, last, ratio = (torch.stack([state[name] for state in states]).float() for name in names)
    now, g = torch.zeros_like(last) + (torch.nan if loss is None else loss), grads.float()
    cosine = (g * before).sum((-2, -1)) / (norms(g) * norms(before)).flatten()  # 0 / 0 at the first step
    found = torch.stack((now, last - now, norms(g).flatten(), ratio, cosine), -1)
    seen = seen + found.isfinite()
    means = torch.where(found.isfinite(), means.lerp(found, (1 / seen).clamp_min(1 - beta)), means)
    last = torch.where(now.isfinite(), now, last)
    for name, value in (("means", means), ("seen", seen), ("previous", grads), ("loss", last)):
        unstack(states, name, value)
    return torch.cat((means, torch.full_like(means[:, :1], progress)), -1).to(grads.dtype)


class Settings(nn.Module):  # plain values by name, saved with the buffers
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.settings)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.settings = dict(state)


class Carrier(torch.optim.Optimizer):
    """An optimizer around a base: parameters, groups and state are the base's, `own` is what it adds to them.
    LR schedulers, GradScaler, copies, pickles and hooks (of loading: they may look) work. The state dict is the base's
    and an entry named after the class, own's buffers and settings. `step(loss)`, `step(loss=loss)`, `step(closure)`."""

    takes_loss = True

    def __init__(self, base: torch.optim.Optimizer, own: nn.Module) -> None:
        if not isinstance(base, torch.optim.Optimizer) or isinstance(base, torch.optim.LBFGS | type(self)):
            raise ValueError(f"{type(self).__name__}: expected a first-order optimizer, found {type(base).__name__}")
        super().__init__(base.param_groups, base.defaults)
        self.base, self.own = base, own.to(base.param_groups[0]["params"][0].device)
        self.share()

    def share(self) -> None:  # again after the base was given another state
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def __getstate__(self) -> dict[str, Any]:
        self.share()
        shared = {"param_groups": self.param_groups, "state": self.state, "defaults": self.defaults}
        return {"base": self.base, "own": self.own, **shared}

    def state_dict(self) -> dict[str, Any]:
        self.share()
        return self.base.state_dict() | super().state_dict() | {type(self).__name__: self.own.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (name := type(self).__name__) not in state_dict:
            raise ValueError(f"{name}: expected a state dict with an entry {name!r}, found {sorted(state_dict)}")
        try:  # what refuses comes first
            super().load_state_dict(state_dict)
            self.own.load_state_dict(state_dict[name])
            self.base.load_state_dict(state_dict)
        finally:
            self.share()

    def evaluate(self, closure: Any, loss: Any) -> Tensor:
        """The loss as () float32 on the device, from a closure, a float or a tensor."""
        self.share()
        with torch.enable_grad():
            loss = closure() if callable(closure) else loss if closure is None else closure
        if loss is None:
            raise TypeError(f"{type(self).__name__}.step: expected the loss, or a closure that returns it, found none")
        device = self.param_groups[0]["params"][0].device
        loss = loss.detach() if isinstance(loss, torch.Tensor) else torch.full((), loss, device=device)
        return loss.to(device).float().reshape(())


def step_with(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step, with the loss for those that look at it."""
    optimizer.step(loss=loss) if getattr(optimizer, "takes_loss", False) else optimizer.step()


# --- optional: adaptive resonance suppression (switch: ARS_LAW) ---
class Resonance(Settings):
    """ARS's controller, on the device. Buffers: losses, surprises (newest last), finite losses seen, last signals."""

    def __init__(self, history: int, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("losses", torch.zeros(history))
        self.register_buffer("surprises", torch.zeros(window))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("signals", torch.tensor([0.0, 0.0, 1.0, 1.0]))  # surprise, rho, psi, phi

    def forward(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """loss: () float32 -> psi, phi, both (). No host synchronisation."""
        law, finite, before = self.settings, loss.isfinite(), self.surprises
        known = torch.arange(-len(self.losses), 0, device=loss.device) >= -self.seen
        mean = (self.losses * known).sum() / known.sum().clamp_min(1)
        apart, dust = (loss - mean).abs().clamp_max(1e15), 1e-6 * loss.abs() if law["scaled"] else 0.0  # of rounding
        surprise = torch.where(finite & (self.seen >= 2) & (apart > dust), apart, 0.0)
        recent = torch.where(finite, torch.cat((before[1:], surprise[None])), before)
        off, seen = recent - recent.mean(), self.seen + finite
        power, unit = off.square().sum(), recent.square().sum().clamp_min(1e-20) if law["scaled"] else 1.0
        full = (seen >= len(recent)) & (power >= 1e-8 * unit)
        rho = torch.where(full, (off[:-1] * off[1:]).sum() / power, 0.0)
        psi = torch.where(rho.abs() > law["rho_threshold"], (1 - rho.abs()).clamp_min(law["psi_min"]), 1.0)
        if law["scaled"]:  # by the running deviation of the surprises before this one
            size = (before.square().sum() / self.seen.clamp(1, len(before))).sqrt()
            surprise = torch.where(size > 0, surprise / size, (surprise > 0).float())  # the first one counts as one
        phi = (1 - torch.tanh(law["alpha"] * surprise / psi)).clamp_min(law["phi_min"])
        losses = torch.where(finite, torch.cat((self.losses[1:], loss[None])), self.losses)
        state = (losses, recent, seen, torch.stack((surprise, rho, psi, phi)))
        torch._foreach_copy_(list(self.buffers()), state)
        return psi, phi


class ARS(Carrier):
    """Adaptive resonance suppression: smaller steps where the loss surprises, noise where surprises repeat.
    Law: docs/optimizers/ars.md. Beyond the published one: `scaled` counts surprise in its own running deviations,
    `relative_jitter` noise in each gradient's RMS, on="update" puts phi on what the base does, not on what it gets."""

    def __init__(
        self, base: torch.optim.Optimizer, alpha: float = 1.0, phi_min: float = 0.3, psi_min: float = 0.1,
        jitter_scale: float = 0.005, rho_threshold: float = 0.75, history: int = 10, window: int = 50, *,
        scaled: bool = False, relative_jitter: bool = False, on: str = "gradient",
    ) -> None:  # fmt: skip
        law = {"alpha": alpha, "phi_min": phi_min, "psi_min": psi_min, "jitter_scale": jitter_scale}
        law |= {"rho_threshold": rho_threshold, "scaled": scaled, "relative_jitter": relative_jitter, "on": on}
        limits = {"alpha": (0, 1e6), "phi_min": (0, 1), "psi_min": (1e-6, 1), "jitter_scale": (0, 1e6)}
        limits |= {"rho_threshold": (0, 1), "history": (1, 1e6), "window": (3, 1e6), "on": ("gradient", "update")}
        for name, bounds in limits.items():
            check("ARS", name, (law | {"history": history, "window": window})[name], *bounds)
        super().__init__(base, Resonance(history, window, **law))

    def step(self, closure: Any = None, *, loss: Any = None) -> Tensor:
        loss = self.evaluate(closure, loss)
        with torch.no_grad():
            params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            for p in (p for p in params if p.grad.is_sparse):
                p.grad = p.grad.coalesce()  # so that a row gets its noise once
            grads = [p.grad._values() if p.grad.is_sparse else p.grad for p in params]
            psi, phi = self.own(loss)
            self.jitter(grads, psi)
            before = [p.clone() for p in params] if self.own.settings["on"] == "update" else []
            if grads and not before:
                torch._foreach_mul_(grads, phi)
            step_with(self.base, loss)
            if before:
                torch._foreach_lerp_(params, before, [(1 - phi).to(p.dtype).expand_as(p) for p in params])
        return loss

    def jitter(self, grads: list[Tensor], psi: Tensor) -> None:
        law, asking_is_free = self.own.settings, MACHINE.type == psi.device.type == "cpu"  # it would stop a GPU
        if grads and law["jitter_scale"] and not (asking_is_free and psi >= 0.5):
            noises, sizes = [torch.randn_like(grad) for grad in grads], law["jitter_scale"] * (psi < 0.5)
            if law["relative_jitter"]:
                rms = [norm / grad.numel() ** 0.5 for norm, grad in zip(torch._foreach_norm(grads), grads, strict=True)]
                torch._foreach_mul_(noises, rms)
            torch._foreach_mul_(noises, sizes)
            torch._foreach_add_(grads, noises)


# --- end optional ---
# --- optional: adaptive resonance memory (switch: ART_LAW) ---
class ARTMemory(Settings):
    """Prototypes ("traces") of hidden states. https://doi.org/10.1016/0893-6080(91)90056-B, docs/optimizers/art.md.
    coding: "complement", [a, 1 - a] of a = sigmoid(x), or "raw", cosines of x. quantile: of the matches between
    inputs, which the vigilance follows. creations: new traces a `learn`, at most. recycle: where there is
    no room, over the least used. Buffers: `traces` (K, D), `uses` (K,), `last` (3,): trace, match, distance."""

    def __init__(
        self, dim: int, max_traces: int = 64, vigilance: float = 0.8, eta: float = 0.05, alpha: float = 1e-3,
        coding: str = "complement", *, quantile: float | None = None, creations: int = 1, recycle: bool = False,
        lam: float = 0.01,
    ) -> None:  # fmt: skip
        check("ARTMemory", "coding", coding, "complement", "raw")
        limits = {"vigilance": (vigilance, -1, 1), "eta": (eta, 0, 1), "quantile": (quantile or 0, 0, 1)}
        limits |= {"max_traces": (max_traces, 1, 1e6), "creations": (creations, 0, 1e6)}
        for name, bounds in (limits | {"alpha": (alpha, 0, 1e6), "lam": (lam, 0, 1e6)}).items():
            check("ARTMemory", name, *bounds)
        law = {"eta": eta, "alpha": alpha, "quantile": quantile, "creations": creations, "recycle": recycle}
        super().__init__(**law, coding=coding, lam=lam)
        self.register_buffer("traces", torch.zeros(max_traces, 2 * dim if coding == "complement" else dim))
        self.register_buffer("uses", torch.zeros(max_traces))
        self.register_buffer("vigilance", torch.tensor(float(vigilance)))
        self.register_buffer("last", torch.tensor([-1.0, 0.0, 0.0]))

    def code(self, x: Tensor) -> Tensor:
        """x: (N, d) -> what traces are compared with, (N, D)."""
        a = x.float().sigmoid()
        return x.float() if self.settings["coding"] == "raw" else torch.cat((a, 1 - a), dim=-1)

    def compare(self, coded: Tensor, traces: Tensor) -> tuple[Tensor, Tensor]:
        """coded: (N, D), traces: (K, D) -> choice T and match M, both (N, K)."""
        if self.settings["coding"] == "raw":
            return (F.normalize(coded, dim=-1) @ F.normalize(traces, dim=-1).mT,) * 2
        size, whole = traces.sum(-1), coded.sum(-1, keepdim=True)
        both = (size + whole - torch.cdist(coded, traces, p=1)) / 2  # |min(a, b)| of what is not negative
        return both / (self.settings["alpha"] + size), both / whole

    @torch.no_grad()
    def resonate(self, coded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """coded: (N, D) -> trace (N,), or the nearest, its match (N,), and whether it resonates (N,)."""
        choice, match = self.compare(coded, self.traces)
        fits = (match >= self.vigilance) & (self.uses > 0)
        hits, nearest = fits.any(-1), torch.where(self.uses > 0, match, -torch.inf)
        index = torch.where(hits[:, None], torch.where(fits, choice, -torch.inf), nearest).argmax(-1)
        return index, match.gather(-1, index[:, None])[:, 0], hits

    def loss(self, x: Tensor) -> Tensor:
        """lam times the mean square from what resonates to its trace, or to the box [w1, 1 - w2]. x: (N, d) -> ()."""
        coded = self.code(x)
        index, match, hits = self.resonate(coded.detach())
        apart = self.traces[index] - coded
        if self.settings["coding"] == "complement":
            apart = apart.relu() * 2**0.5  # w1 - a in one half, a - (1 - w2) in the other, of which one is positive
        apart = torch.where(hits, apart.square().mean(-1), 0.0).sum() / hits.sum().clamp_min(1)
        self.last.copy_(torch.stack((torch.where(hits[-1], index[-1], -1).float(), match[-1], apart.detach())))
        return self.settings["lam"] * apart

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Each trace moves to the mean of its minima; the first that resonate with none become traces. x: (N, d)."""
        coded, law = self.code(x), self.settings
        sound = coded.isfinite().all(-1)
        coded = torch.where(sound[:, None], coded, 0.5)
        if law["quantile"] is not None and len(coded) > 1:  # followed, as states spread while the model learns
            same = torch.eye(len(coded[:512]), dtype=torch.bool, device=x.device) | ~sound[:512] | ~sound[:512, None]
            found = self.compare(coded[:512], coded[:512])[1].masked_fill(same, torch.nan).nanquantile(law["quantile"])
            found = torch.where(found.isnan(), self.vigilance, found)
            self.vigilance.copy_(torch.where(self.uses.any(), self.vigilance.lerp(found, law["eta"]), found))
        index, _, hits = self.resonate(coded)
        slots = torch.arange(len(self.traces), device=x.device)
        weight = ((index[:, None] == slots) & (hits & sound)[:, None]).float()  # (N, K)
        counts = weight.sum(0)
        means = weight.mT @ torch.minimum(coded, self.traces[index]) / counts.clamp_min(1)[:, None]
        self.traces.lerp_(torch.where(counts[:, None] > 0, means, self.traces), law["eta"])
        self.uses += counts
        novel, places = sound & ~hits, self.uses.argsort(stable=True)[: law["creations"]]
        chosen = novel & (novel.cumsum(0) == slots[: len(places), None] + 1)  # (c, N)
        new = chosen.any(-1) & ((self.uses[places] == 0) | law["recycle"])
        self.traces[places] = torch.where(new[:, None], coded[chosen.float().argmax(-1)], self.traces[places])
        self.uses[places] = torch.where(new, self.uses[places] + 1, self.uses[places])  # not the next to go

    @torch.no_grad()
    def recall(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest traces as hidden states (a box: its middle), and their matches. (N, d) -> (N, k, d), (N, k)."""
        match = torch.where(self.uses > 0, self.compare(self.code(x), self.traces)[1], -torch.inf)
        match, index = match.topk(min(k, len(self.traces)), dim=-1)
        w = self.traces[index]
        if self.settings["coding"] == "raw":
            return w, match
        return torch.logit((w.chunk(2, dim=-1)[0] + 1 - w.chunk(2, dim=-1)[1]) / 2, eps=1e-4), match


class ARTDynamicsOptimizer(Carrier):
    """AdamW and an ARTMemory in one step. hidden: (B, T, C), of which the last position counts, or (N, C)."""

    def __init__(
        self, params: Any, hidden_dim: int, lr: float = 5e-5, eta: float = 0.05, lam: float = 0.01, **law: Any
    ) -> None:
        super().__init__(torch.optim.AdamW(params, lr=lr), ARTMemory(hidden_dim, eta=eta, lam=lam, **law))

    def art_loss(self, hidden: Tensor) -> Tensor:
        return self.own.loss(hidden[:, -1] if hidden.dim() == 3 else hidden)

    def step(self, closure: Any = None, hidden: Tensor | None = None, *, loss: Any = None) -> Any:
        """A gradient step, and one of the traces where there are hidden states. Returns the loss, if it was given."""
        self.share()
        loss = loss if closure is None else closure
        loss = self.base.step(loss) if callable(loss) else self.base.step() or loss
        if hidden is not None:
            self.own.learn((hidden[:, -1] if hidden.dim() == 3 else hidden).detach())
        return loss

    def describe(self, step: int, ce: float) -> str:
        """A line for a log. ART: mean square distance; trace and match: of the last input, -1 if it fits none."""
        trace, match, distance = self.own.last.tolist()
        return f"Step {step} | CE={ce:.4f} | ART={distance:.4f} | Resonated Trace={trace:.0f} | Sim={match:.4f}"


@torch.no_grad()
def generate(model: GPT, idx: Tensor, count: int, memory: ARTMemory | None = None, share: float = 0.1) -> Tensor:
    """idx: (B, T) with `count` sampled tokens behind, (B, T + count); `memory`'s nearest trace has a share in each."""
    for _ in range(count):
        hidden = model(idx[:, -model.config.seq_len :], return_hidden=True)[1][:, -1]
        if memory is not None:
            nearest, match = memory.recall(hidden, 1)
            hidden = torch.where(match.isfinite(), hidden.lerp(nearest[:, 0].to(hidden.dtype), share), hidden)
        chances = capped(model.head(hidden), model.config.softcap).softmax(-1)
        idx = torch.cat((idx, torch.multinomial(chances, 1)), dim=1)
    return idx


# --- end optional ---
# --- optional: adaptive control (switch: ADAPTIVE) ---
@dataclass(frozen=True)
class Snapshot:
    """Actuators and signals. loss: mean of the last window; variance: of its losses, over loss²; nan: not known yet."""

    lr: float
    momentum: float
    sigma: float
    pct_frozen: float = 0.0
    loss: float = math.nan
    loss_ema: float = math.nan
    grad_norm_ema: float = math.nan
    variance: float = math.nan
    trend: float = 0.0  # share of the loss won since the window before
    reward: float = math.nan
    reward_trend: float = 0.0
    worse: int = 0  # windows in a row
    resting: int = 0  # windows for which lr is held
    windows: int = 0


@dataclass(frozen=True)
class Laws(Checked):
    """How a snapshot leads to the next. patience, cooldown, cycle, probe count windows. docs/optimizers/adaptive.md."""

    lr_bounds: tuple[float, float] = (1e-6, 5e-2)
    mu_bounds: tuple[float, float] = (0.0, 0.999)
    sigma_bounds: tuple[float, float] = (0.0, 1e-2)
    ema_beta: float = within(0.9, 0, 0.9999)
    rule: str = within("trend", "trend", "blend", "literal")  # with variance, norm and a cycle; each step at its word
    up: float = within(1.02, 1, 10)
    down: float = within(0.8, 0.01, 1)
    damping: float = within(10.0, 0, 1e6)  # lambda: the noisier the loss, the smaller the drop
    window: int = within(20, 2, 1e6)  # steps
    kappa: float = within(3.0, 0, 1e6)  # half width of the dead band, in standard errors of a window's mean
    patience: int = within(2, 1, 1e6)
    cooldown: int = within(4, 0, 1e6)
    cycle: int = within(40, 1, 1e6)
    probe: int = within(10, 1, 1e6)

    def ema(self, before: float, now: float) -> float:
        """The running mean with one value more; one that is no number is left out."""
        mean = now if math.isnan(before) else self.ema_beta * before + (1 - self.ema_beta) * now
        return mean if math.isfinite(now) else before

    def decide(self, was: Snapshot, loss: float, spread: float, norm: float, reward: float) -> Snapshot:
        """From mean and variance of a window's losses, its gradient norm, and a reward; nan: unknown."""
        now = replace(was, windows=was.windows + 1, resting=max(0, was.resting - 1))
        if not math.isfinite(loss):  # lost: down at once, and nothing learned from it
            now = replace(now, lr=clip(was.lr * self.down, self.lr_bounds), resting=self.cooldown, worse=0)
            return replace(now, sigma=clip(was.sigma / 2, self.sigma_bounds))
        norm_ema, variance = self.ema(was.grad_norm_ema, norm), spread / max(loss * loss, 1e-30)
        now = replace(now, loss=loss, loss_ema=self.ema(was.loss_ema, loss), grad_norm_ema=norm_ema, variance=variance)
        now = replace(now, reward=reward if math.isfinite(reward) else was.reward)
        if math.isnan(was.loss):
            return now
        trend, gain = (was.loss - loss) / max(abs(loss), 1e-30), now.reward - was.reward
        band = 0.0 if self.rule == "literal" else self.kappa * math.sqrt(variance / self.window)
        better, worsens = trend > band, trend < -band
        noisy = (worsens and was.trend < 0) or variance > 4 * was.variance
        steady = not noisy and (gain > 0 or (better and was.trend > 0))
        mu = 1 - (1 - was.momentum) * (1 / 0.95 if noisy else 0.95 if steady else 1)
        sigma = was.sigma * (0.5 if worsens or noisy else 1.0 if better else 1.1)
        now = replace(now, momentum=clip(mu, self.mu_bounds), sigma=clip(sigma, self.sigma_bounds))
        worse, gain = was.worse + 1 if worsens else 0, gain if gain == gain else 0.0
        now = replace(now, trend=trend, worse=worse, reward_trend=gain)
        if self.rule == "literal":
            return replace(now, lr=clip(was.lr * (self.up if better else self.down), self.lr_bounds))
        return now if was.resting else self.turn(was, now, better, norm)

    def turn(self, was: Snapshot, now: Snapshot, better: bool, norm: float) -> Snapshot:
        """lr moves: up, or one drop and then hold. blend: instability shifts weight to variance and norm."""
        drop, drops = math.log1p((self.down - 1) / (1 + self.damping * now.variance)), now.worse >= self.patience
        rate = drop if drops else math.log(self.up) if better else 0.0
        if self.rule == "blend":
            stable = 1 / (1 + now.variance / max(was.variance, 1e-30))  # one half where the noise is as it was
            calm = rate + math.log(self.up) * math.cos(2 * math.pi * now.windows / self.cycle)
            wild = drop * ((now.variance > 4 * was.variance) + (norm > 2 * was.grad_norm_ema))
            rate = max(drop, stable * calm + (1 - stable) * wild)
        held = {"resting": self.cooldown, "worse": 0} if drops else {}
        return replace(now, lr=clip(now.lr * math.exp(rate), self.lr_bounds), **held)


def clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


class AdaptiveScheduler(Settings):
    """Sets lr, momentum and dither of optimizers by what their losses say, and freezes parameters at rest.
    After `optimizer.step()`, before `zero_grad()`: `snap = step(loss, reward=None)`, one host read a window, two where
    it freezes. Groups keep their lr's ratios. factor: lr is for the caller's schedule, no group is touched. dither:
    noise each step, sigma times a parameter's RMS. freeze_threshold: of the running norm of a parameter's gradient; the
    frozen train for a step every `probe` windows. laws: fields of Laws."""

    def __init__(
        self, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], model: nn.Module, lr: float = 5e-4,
        momentum: float = 0.9, sigma: float = 1e-3, lr_bounds: tuple[float, float] = (1e-6, 5e-2),
        mu_bounds: tuple[float, float] = (0.0, 0.999), sigma_bounds: tuple[float, float] = (0.0, 1e-2),
        ema_beta: float = 0.9, freeze_threshold: float | None = 1e-4, *, factor: bool = False, dither: bool = False,
        **laws: Any,
    ) -> None:  # fmt: skip
        law = asdict(Laws(lr_bounds, mu_bounds, sigma_bounds, ema_beta, **laws))
        for name, value in (("lr", lr), ("mu", momentum), ("sigma", sigma)):
            check("adaptive control", f"{name} in its bounds,", value, *law[f"{name}_bounds"])
        fixed = {"law": law, "threshold": freeze_threshold, "factor": factor, "dither": dither}
        now = {"now": asdict(Snapshot(lr, momentum, sigma)), "steps": 0, "reward": math.nan}
        super().__init__(**fixed, **now, probing=False, frozen=[])
        self.optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self.tuned = [p for p in model.parameters() if p.requires_grad]  # what the user froze stays frozen
        self.register_buffer("norms", torch.full((len(self.tuned),), torch.nan))  # nan: not measured
        self.register_buffer("sums", torch.zeros(3))  # of losses less the last mean, their squares, gradient norms
        self.to(self.tuned[0].device)
        self.control()

    @property
    def now(self) -> Snapshot:
        return Snapshot(**self.settings["now"])

    @torch.no_grad()
    def step(self, loss: Tensor | float, reward: float | None = None) -> Snapshot:
        norm, own = self.measure(), self.settings
        if own["probing"]:
            self.freeze(probing=False)
        if self.observe(torch.as_tensor(loss, device=norm.device).float().reshape(()), norm, reward):
            self.control()
            if own["threshold"] is not None:
                self.freeze(probing=self.now.windows % own["law"]["probe"] == 0)
        for p in (p for p in self.tuned if own["dither"] and p.requires_grad):
            p.add_(torch.randn_like(p) * (p.square().mean().sqrt() * self.now.sigma))
        return self.now

    def measure(self) -> Tensor:
        """Bring the running norms up to date; the norm of the whole gradient, ()."""
        grads = {i: p.grad for i, p in enumerate(self.tuned) if p.grad is not None}
        if not grads:
            return self.norms.new_full((), torch.nan)
        values = [g.coalesce()._values() if g.is_sparse else g for g in grads.values()]
        found, beta = [norm.float() for norm in torch._foreach_norm(values)], self.settings["law"]["ema_beta"]
        for i, norm in zip(grads, found, strict=True):
            self.norms[i] = torch.where(self.norms[i].isnan(), norm, self.norms[i].lerp(norm, 1 - beta))
        return torch.stack(found).norm()

    def observe(self, loss: Tensor, norm: Tensor, reward: float | None) -> bool:
        """Whether this step ended a window, each does if literal, and `now` is new. loss, norm: ()."""
        own, law, n = self.settings, Laws(**self.settings["law"]), self.settings["steps"] + 1
        last = 0.0 if math.isnan(self.now.loss) else self.now.loss  # squares of what is left of a loss lose no digits
        self.sums += torch.stack((loss - last, (loss - last) ** 2, norm))
        own |= {"steps": n, "reward": own["reward"] if reward is None else float(reward)}
        if n < law.window and law.rule != "literal":
            return False
        mean, square, size = (self.sums / n).tolist()
        self.sums.zero_()
        spread = max(0.0, square - mean * mean) * n / (n - 1) if n > 1 else 0.0
        own |= {"now": asdict(law.decide(self.now, last + mean, spread, size, own["reward"]))}
        own |= {"steps": 0, "reward": math.nan}
        return True

    def control(self) -> None:
        """lr of every group, times its share, at first its part of the first group's; and momentum, or Adam's beta1."""
        groups, now = [group for optimizer in self.optimizers for group in optimizer.param_groups], self.now
        first = groups[0]["lr"]
        for group in groups if not self.settings["factor"] else ():
            group["lr"] = now.lr * group.setdefault("share", group["lr"] / first if first else 1.0)
            if group.setdefault("carries", bool(group.get("momentum"))):
                group["momentum"] = now.momentum
            elif "betas" in group:
                group["betas"] = (now.momentum, *group["betas"][1:])

    def freeze(self, probing: bool) -> None:
        """Parameters at rest, never all, train no more, or all do where probing. Optimizers keep their state."""
        norms = self.norms.tolist()
        moving = [norm for norm, p in zip(norms, self.tuned, strict=True) if p.grad is not None and norm == norm]
        limit = min(self.settings["threshold"], max(moving, default=0.0))
        for i in self.settings["frozen"] if probing else ():
            self.norms[i] = torch.nan  # what it measures from now on counts
        self.hold([] if probing else [i for i, norm in enumerate(norms) if norm < limit], probing)

    def hold(self, frozen: list[int], probing: bool) -> None:
        for i, p in enumerate(self.tuned):
            p.requires_grad_(i not in frozen)
            p.grad = None if i in frozen else p.grad
        pct = 100 * sum(self.tuned[i].numel() for i in frozen) / sum(p.numel() for p in self.tuned)
        self.settings |= {"frozen": frozen, "probing": probing, "now": self.settings["now"] | {"pct_frozen": pct}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.hold(state["frozen"], state["probing"])
        self.control()


class Online(Carrier):  # a base under the same laws, built in: lr and momentum follow its loss
    def __init__(self, base: torch.optim.Optimizer, momentum: float, laws: dict[str, Any]) -> None:
        tuned = nn.ParameterList(p for group in base.param_groups for p in group["params"])
        start = {"lr": base.param_groups[0]["lr"], "momentum": momentum, "sigma": 0.0, "freeze_threshold": None}
        super().__init__(base, AdaptiveScheduler(base, tuned, **start | laws))

    def step(self, closure: Any = None, *, loss: Any = None) -> Tensor:
        loss = self.evaluate(closure, loss)
        step_with(self.base, loss)
        self.own.step(loss)
        return loss


class OnlineSGD(Online):
    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9, **laws: Any) -> None:
        super().__init__(torch.optim.SGD(params, lr=lr, momentum=momentum), momentum, laws)


class OnlineAdaGrad(Online):
    def __init__(self, params: Any, lr: float = 1e-2, **laws: Any) -> None:
        super().__init__(torch.optim.Adagrad(params, lr=lr), laws.get("mu_bounds", (0.0,))[0], laws)


# --- end optional ---
ARSOptimizer = ARS
# AdamW in one pass over memory; SparseAdam moves only the rows that a batch touched, their moments included.
OPTIMIZERS = {"muon": Muon, "adamw": partial(torch.optim.AdamW, eps=ADAM_EPS, fused=True)}
OPTIMIZERS |= {"sparse_adam": partial(torch.optim.SparseAdam, eps=ADAM_EPS)}
OPTIMIZERS |= {"online_sgd": OnlineSGD, "online_adagrad": OnlineAdaGrad}


def param_groups(model: GPT) -> list[dict[str, Any]]:
    """Every parameter in exactly one group. A group: name, optimizer (a key of OPTIMIZERS), params, its settings."""
    scale = (model.config.width / 768) ** -0.5
    tables = "sparse_adam" if any(table.sparse for table in model.ngrams) else "adamw"

    def adamw(name: str, params: Any, lr: float, **settings: Any) -> dict[str, Any]:
        settings = {"betas": ADAM_BETAS, "weight_decay": 0.0, "lr": lr} | settings
        return {"name": name, "optimizer": "adamw", "params": list(params), **settings}

    groups = [
        adamw("embedding", model.embedding.parameters(), EMBEDDING_LR * scale),
        adamw("ngrams", model.ngrams.parameters(), NGRAM_LR * scale, optimizer=tables),
        adamw("values", model.values.parameters(), EMBEDDING_LR * scale),
        adamw("head", model.head.parameters(), UNEMBEDDING_LR * scale),
        adamw("residual", [model.residual_scale], SCALAR_LR * 0.01),
        adamw("input", [model.input_scale], SCALAR_LR, betas=(0.96, 0.95)),
    ]
    matrices = [p for blocks in (model.attention, model.mlp) for p in blocks.parameters()]
    for shape in sorted({p.shape for p in matrices}):
        same = [p for p in matrices if p.shape == shape]
        settings = {"momentum": MUON_MOMENTUM[0], "weight_decay": WEIGHT_DECAY, "lr": MATRIX_LR}
        groups.append({"name": f"matrix{tuple(shape)}", "optimizer": "muon", "params": same, **settings})
    groups = [group for group in groups if group["params"]]
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted(id(p) for p in model.parameters()), "each parameter belongs to exactly one group"
    return groups


def make_optimizers(groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
    sorts = {name: [g | {"base_lr": g["lr"]} for g in groups if g["optimizer"] == name] for name in OPTIMIZERS}
    made = [OPTIMIZERS[name](own) for name, own in sorts.items() if own]
    return made if ARS_LAW is None else [ARS(optimizer, **ARS_LAW) for optimizer in made]


# ── schedules (of progress, the share of the budget used) and speed ───────────────────────────────────────────────────


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


def set_schedules(optimizers: list[torch.optim.Optimizer], progress: float, factor: float = 1.0) -> None:
    """factor: on every learning rate, by adaptive control."""
    for group in (g for o in optimizers if not isinstance(o, Online) for g in o.param_groups):  # which set their own
        group["lr"] = group["base_lr"] * lr_scale(progress) * factor
        if group["optimizer"] == "muon":
            group["momentum"], group["progress"] = muon_momentum(progress), progress
            group["weight_decay"] = WEIGHT_DECAY * (1.0 - progress)


def flop_per_token(model: GPT) -> float:
    """Training FLOPs: 6 for each weight of a matrix product, 12 for each channel and position that attention sees."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    return 6 * weights + 12 * model.config.width * sum(model.config.windows)


# --- optional: flex attention (switch: FLEX_ATTENTION) ---
def flex_masks(config: GPTConfig) -> dict[int, BlockMask]:
    """Masks of the windows for which a stopwatch finds FlexAttention faster than SDPA on this GPU, by window."""
    T, shape = config.seq_len, (DEVICE_BATCH_SIZE, config.heads, config.seq_len, config.width // config.heads)
    q, k, v = (torch.randn(shape, device=DEVICE, dtype=DTYPES[DTYPE], requires_grad=True) for _ in range(3))

    def seconds(mask: BlockMask | None, window: int) -> float:
        form = torch.compile(attend)
        return min(prepare.stopwatch(lambda: form(q, k, v, window, mask).sum().backward()) for _ in range(6))

    windows = {window for window in config.windows if window < T}
    masks = {window: create_block_mask(partial(sees, window), None, None, T, T, device=DEVICE) for window in windows}
    return {window: mask for window, mask in masks.items() if seconds(mask, window) < seconds(None, window)}


# --- end optional ---

# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LOG_LINES = 50  # of a curve, evenly over the budget: runs of other batch sizes can be compared on the way
ART_CHUNK = 64  # tokens pooled into one input of the memory
ART_HERE = {"quantile": 0.9, "recycle": True}  # pooled states are alike, and change while the model learns
ADAPTIVE_HERE = {"factor": True, "lr": 1.0, "lr_bounds": (0.3, 2.0), "freeze_threshold": None}


def fail_fast(loss: float, vocab_size: int) -> None:
    """Exit 1 when training is lost: no number, or a loss far worse than guessing."""
    if not loss <= 2 * math.log(vocab_size):
        sys.exit("FAIL: loss exploded" if math.isfinite(loss) else "FAIL: loss is nan")


def prepare_step(model: GPT, feed: prepare.Feed) -> nn.Module:
    """The module that training calls. On CUDA compiled, and warmed up on random tokens before the clock starts."""
    if DEVICE.type != "cuda":
        return model
    if FLEX_ATTENTION:
        model.block_masks = flex_masks(model.config)
    compiled = torch.compile(model)
    hidden = {} if ART_LAW is None else {"return_hidden": True}
    for _ in range(3):
        out = compiled(*feed.warmup(split_batch(model.config.seq_len)[0], model.config.seq_len), **hidden)
        (out[0] if hidden else out).backward()
    model.zero_grad()
    return compiled


def split_batch(length: int) -> tuple[int, int]:
    """TOTAL_BATCH_SIZE tokens as (rows of a micro step, micro steps), with no more rows than DEVICE_BATCH_SIZE."""
    rows = max(1, min(DEVICE_BATCH_SIZE, TOTAL_BATCH_SIZE // length))
    return rows, max(1, TOTAL_BATCH_SIZE // (rows * length))


def accumulate(model: nn.Module, feed: prepare.Feed, length: int, memory: Any = None) -> Tensor | None:
    """Gradients of one optimizer step, TOTAL_BATCH_SIZE tokens; the mean loss, or None when the budget is used up."""
    rows, micro_steps = split_batch(length)
    total = torch.zeros((), device=DEVICE)
    for _ in range(micro_steps):
        batch = feed.next(rows, length)
        if batch is None:
            return None
        if memory is None:
            loss = pulled = model(batch.inputs, batch.targets) / micro_steps
        else:
            loss, hidden = model(batch.inputs, batch.targets, return_hidden=True)
            pooled = hidden.unflatten(1, (-1, math.gcd(ART_CHUNK, length))).mean(2).flatten(0, 1)
            loss, pulled = loss / micro_steps, (loss + memory.loss(pooled)) / micro_steps
            memory.learn(pooled.detach())
        pulled.backward()
        total += loss.detach()
    return total


def main() -> None:
    torch.manual_seed(prepare.SEED)
    torch.set_float32_matmul_precision("high")
    feed = prepare.open_feed()
    config = configure(feed.vocab_size, feed.max_seq_len)
    model = build_model(config).to(DEVICE)
    optimizers = make_optimizers(param_groups(model))
    memory = None if ART_LAW is None else ARTMemory(config.width, **ART_HERE | ART_LAW).to(DEVICE)
    control = None if ADAPTIVE is None else AdaptiveScheduler(optimizers, model, **ADAPTIVE_HERE | ADAPTIVE)
    peak = prepare.peak_flops(DTYPES[DTYPE])
    step_model = prepare_step(model, feed)

    def report(step: int, losses: list[Tensor]) -> None:
        fail_fast(nats := torch.stack(losses).mean().item(), config.vocab_size)
        done = feed.tokens - split_batch(config.seq_len)[0] * config.seq_len  # feed.seconds: when the last batch came
        mfu = 100 * flop_per_token(model) * done / (peak * feed.seconds) if peak and feed.seconds else 0.0
        prepare.log(step=step, loss=nats, lr_scale=lr_scale(feed.progress), mfu=mfu)

    step, lines, unsaid = 0, 0, []
    while (loss := accumulate(step_model, feed, config.seq_len, memory)) is not None:
        set_schedules(optimizers, feed.progress, control.now.lr if control else 1.0)
        for optimizer in optimizers:
            step_with(optimizer, loss)
        if control:
            control.step(loss)
        model.zero_grad()
        step, unsaid = step + 1, [*unsaid, loss]
        if step == 1:  # Python's collector would stop the device for nothing: what lives now lives until the end
            gc.collect()
            gc.freeze()
            gc.disable()
        if feed.progress * LOG_LINES >= lines:
            report(step, unsaid)
            lines, unsaid = lines + 1, []
    if unsaid:
        report(step, unsaid)
    prepare.finish(model, config)


if __name__ == "__main__":
    main()
