"""The smallest train.py that keeps the contract: a bigram table. Copied into test repositories as their train.py."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import prepare
from prepare import SEED

BATCH = 8
MATRIX_LR = 0.5


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    depth: int = 1


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, 16)
        self.head = nn.Linear(16, config.vocab_size)

    def forward(self, idx):
        return self.head(self.table(idx))


def build_model(config):
    return GPT(config)


def main():
    torch.manual_seed(SEED)
    feed = prepare.open_feed()
    config = GPTConfig(feed.vocab_size)
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=MATRIX_LR)
    step = 0
    while (batch := feed.next(BATCH, feed.max_seq_len)) is not None:
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        prepare.log(step=step, loss=loss.detach())
        step += 1
    prepare.finish(model, config)


if __name__ == "__main__":
    main()
