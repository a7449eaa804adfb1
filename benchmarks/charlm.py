"""A small character-level language model of plain torch modules, its texts, and its training loop.

Shared by the benchmarks of optimizers. All is a function of text, width and seed; characters are ASCII, others are "?".
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus.stdlib import stdlib_source
from train import step_with

VOCAB, LENGTH, ROWS, LAYERS = 128, 64, 16, 4  # rows are LENGTH characters and the one after them
SIZE = 2_000_000  # characters of a text, at most
HELD = 0.1  # its end, which no training sees

Draw = Callable[[int], Tensor]  # step -> rows (B, LENGTH + 1), int64
Update = Callable[[Tensor], None]  # the loss, its gradients being there -> one step
Make = Callable[[nn.Module], Update]


@dataclass(frozen=True)
class Text:
    """name: for tables. train, held: characters, (N,) int64."""

    name: str
    train: Tensor
    held: Tensor


def text_of(name: str, content: str) -> Text:
    codes = torch.frombuffer(bytearray(content[:SIZE], "ascii", "replace"), dtype=torch.uint8).long()
    cut = int(len(codes) * (1 - HELD))
    return Text(name, codes[:cut], codes[cut:])


def stdlib() -> Text:
    """Source code: modules of the standard library, in an order that depends on nothing but their content."""
    shards = {shard.split: shard for shard in stdlib_source().open()}
    parts, size = [], 0
    for part in shards["train"].read():
        parts.append(part)
        size += len(part)
        if size >= SIZE:
            break
    return text_of("standard library", "".join(parts))


def read(path: Path | None) -> Text:
    """The text file at `path`; without one the standard library."""
    if path is None:
        return stdlib()
    try:
        return text_of(path.name, path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        sys.exit(f"--text: expected a text file, found {path}: {error.strerror}; name another one")


def add_options(parser: argparse.ArgumentParser, steps: int, seeds: int = 3, width: int = 64) -> None:
    parser.add_argument("--text", type=Path, help="train on this file; default: Python's standard library")
    parser.add_argument("--width", type=int, default=width)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=seeds, help="so many, from 1")


def sample(codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows from random places. (N,) -> (count, LENGTH + 1)."""
    starts = torch.randint(len(codes) - LENGTH, (count,), generator=generator)
    return codes.unfold(0, LENGTH + 1, 1)[starts]


def stream(codes: Tensor, seed: int) -> Draw:
    """Batches of ROWS rows, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _step: sample(codes, ROWS, generator)


def held_rows(text: Text, count: int = 256) -> Tensor:
    """The same rows for everybody, (count, LENGTH + 1)."""
    return sample(text.held, count, torch.Generator().manual_seed(0))


class CharLM(nn.Module):
    """A pre-norm transformer as torch builds it; embeddings start small, the rest with torch's defaults."""

    def __init__(self, width: int = 64, layers: int = LAYERS) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(VOCAB, width), nn.Embedding(LENGTH, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        shape = {"d_model": width, "nhead": max(1, width // 16), "dim_feedforward": 4 * width, "activation": "gelu"}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(**shape, dropout=0.0, batch_first=True, norm_first=True) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, idx: Tensor) -> tuple[Tensor, Tensor]:
        """idx: (B, T) -> logits (B, T, VOCAB), and what the head sees, (B, T, C)."""
        T = idx.size(1)
        x = self.embedding(idx) + self.place.weight[:T]
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=idx.device)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        hidden = self.norm(x)
        return self.head(hidden), hidden


def build(width: int, seed: int) -> CharLM:
    torch.manual_seed(seed)
    return CharLM(width)


def weight_norm(model: nn.Module) -> float:
    with torch.no_grad():
        return torch.stack([p.square().sum() for p in model.parameters()]).sum().sqrt().item()


@dataclass(frozen=True)
class Curve:
    """losses: nats a character of every step, up to the last finite one. norms: of all weights, before and after."""

    losses: list[float]
    finite: bool
    norms: tuple[float, float]
    seconds: float


def train(
    model: nn.Module, draw: Draw, steps: int, make: Make, pull: Callable[[Tensor], Tensor] | None = None
) -> Curve:
    """pull: of the hidden states (B, T, C), what is added to the loss. Ends where the loss is no number."""
    update, losses, start, began = make(model), [], weight_norm(model), time.perf_counter()
    for step in range(steps):
        rows = draw(step)
        logits, hidden = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        if not loss.isfinite():
            break
        (loss if pull is None else loss + pull(hidden)).backward()
        update(loss.detach())
        model.zero_grad()
        losses.append(loss.item())
    return Curve(losses, len(losses) == steps, (start, weight_norm(model)), time.perf_counter() - began)


def plain(make: Callable[..., torch.optim.Optimizer], **settings: float) -> Make:
    """A factory of one optimizer over all parameters."""

    def made(model: nn.Module) -> Update:
        optimizer = make(model.parameters(), **settings)
        return lambda loss: step_with(optimizer, loss)

    return made


@torch.no_grad()
def row_losses(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean nats a character of each row. (N, LENGTH + 1) -> (N,)."""
    logits = model(rows[:, :-1])[0]
    return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none").mean(-1)


@torch.no_grad()
def hidden_states(model: nn.Module, rows: Tensor) -> Tensor:
    """(N, LENGTH + 1) -> (N, LENGTH, C)."""
    return model(rows[:, :-1])[1]
