"""GPT-2 fine-tuning with a resonance memory of its hidden states: `python -m examples.gpt2 [--text FILE] [--ars]`.

AdamW and an ARTMemory step together in ARTDynamicsOptimizer; --ars puts ARS around it. Where the weights cannot be had,
a small GPT-2 with random weights reads bytes instead. Flags: --steps, --seed, --lr. Needs transformers
(`pip install -e '.[examples]'`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import torch
import torch.nn.functional as F
from huggingface_hub import constants, get_session
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from train import ARS, ARTDynamicsOptimizer

ROWS, LENGTH = 4, 64
TEXT_LIMIT = 500_000  # characters
SMALL = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 128, "n_layer": 2, "n_head": 4}
SMALL |= {"bos_token_id": None, "eos_token_id": None}


@dataclass(frozen=True)
class Start:
    """A model, its tokens, and what suits it: a learning rate, and the steps of a short run."""

    model: nn.Module
    encode: Callable[[str], list[int]]
    lr: float
    steps: int


def hub_answers() -> bool:
    """Asked once and briefly: the loaders ask again and again."""
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except (OSError, httpx2.HTTPError):
        return False
    return True


def load() -> Start:
    """GPT-2 and its tokenizer from the hub or its cache, else a small one of random weights."""
    away = not hub_answers()
    try:
        model = AutoModelForCausalLM.from_pretrained("gpt2", local_files_only=away)
        tokenizer = AutoTokenizer.from_pretrained("gpt2", local_files_only=away)
    except OSError:
        print("gpt2's weights cannot be had here: a small GPT-2 with random weights, on bytes")
        model = AutoModelForCausalLM.from_config(GPT2Config(**SMALL))
        return Start(model, lambda text: list(text.encode()), lr=1e-3, steps=100)
    return Start(model, partial(tokenizer.encode, verbose=False), lr=5e-5, steps=8)


def read(path: Path | None) -> str:
    """The file, or source of the standard library."""
    files = [path] if path else sorted(Path(argparse.__file__).parent.glob("*.py"))
    return "\n".join(file.read_text(errors="replace") for file in files)[:TEXT_LIMIT]


def batches(tokens: Tensor, seed: int) -> Callable[[], Tensor]:
    draws = torch.Generator().manual_seed(seed)

    def batch() -> Tensor:
        starts = torch.randint(len(tokens) - LENGTH, (ROWS, 1), generator=draws)
        return tokens[starts + torch.arange(LENGTH)]

    return batch


def step(art: ARTDynamicsOptimizer, ars: ARS | None, hidden: Tensor, loss: Tensor) -> None:
    """The memory learns from `hidden` beside the gradient step, which ARS, where it is there, takes its part in."""
    if ars is None:
        art.step(hidden=hidden)
    else:
        ars.step(loss)
        art.own.learn(hidden[:, -1].detach())


def train(model: nn.Module, batch: Callable[[], Tensor], lr: float, steps: int, suppress: bool) -> None:
    width = model.config.hidden_size
    art = ARTDynamicsOptimizer(model.parameters(), width, lr=lr, quantile=0.5)  # half of the pairs match
    ars = ARS(art) if suppress else None
    model.train()
    for n in range(steps):
        idx = batch()
        out = model(input_ids=idx, output_hidden_states=True)
        hidden = out.hidden_states[-1]  # after the last layer; the memory takes the last position
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
        (loss + art.art_loss(hidden)).backward()
        step(art, ars, hidden, loss)
        art.zero_grad()
        if n % max(1, steps // 10) == 0 or n == steps - 1:
            phi = f" | Phi={ars.own.signals[3]:.2f}" if ars else ""
            print(art.describe(n, loss.item()) + phi, flush=True)
    print(f"traces: {int((art.own.uses > 0).sum())}, vigilance {art.own.vigilance:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="8 with gpt2's weights, 100 with random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, help="5e-5 for gpt2's weights, 1e-3 for random ones")
    parser.add_argument("--text", type=Path, help="instead of the standard library's source")
    parser.add_argument("--ars", action="store_true", help="ARS around the optimizer")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    start = load()
    tokens, steps = torch.tensor(start.encode(read(args.text))), args.steps or start.steps
    if len(tokens) <= LENGTH:
        parser.error(f"expected a text of more than {LENGTH} tokens, found {len(tokens)}")
    began = time.perf_counter()
    train(start.model, batches(tokens, args.seed), args.lr or start.lr, steps, args.ars)
    print(f"{steps} steps in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
