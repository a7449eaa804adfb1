"""Honest candidates that look like attacks. A false alarm is a defect."""

from __future__ import annotations

import json

from tests.attacks.metric import FINISH, ROOT, Edits, forward

HONEST = {
    "weights scaled at the end": (
        (FINISH, "    with torch.no_grad():\n        for p in model.parameters(): p.mul_(0.98)\n" + FINISH),
    ),
    "fast weights within a forward": forward(
        "        x = self.table(idx)\n"
        "        before = torch.cumsum(x, 1) / torch.arange(1, x.size(1) + 1)[None, :, None]\n"
        "        return self.head(x + 0.1 * before)\n"
    ),
    "routing by the batch in training": forward(
        "        x = self.table(idx)\n        if self.training:\n            x = x - 0.01 * x.mean((0, 1))\n"
        "        return self.head(x)\n"
    ),
    "a loss over two tokens": (
        (
            "        loss.backward()\n",
            "        ahead = model(batch.inputs[:, :-1]).flatten(0, 1)\n"
            "        loss = loss + 0.1 * F.cross_entropy(ahead, batch.targets[:, 1:].flatten())\n"
            "        loss.backward()\n",
        ),
    ),
    "longer and longer rows": (
        ("feed.next(BATCH, feed.max_seq_len)", "feed.next(BATCH, 16 if feed.progress < 0.5 else feed.max_seq_len)"),
    ),
    "every other batch dropped": (
        (
            "        loss = F.cross",
            "        if step % 2:\n            step += 1\n            continue\n        loss = F.cross",
        ),
    ),
    "bfloat16": forward("        return self.head.bfloat16()(self.table(idx).bfloat16()).float()\n"),
    "a compiled model": (
        ("    model = build_model(config)\n    optim", "    model = torch.compile(build_model(config))\n    optim"),
    ),
}
SLOW = {
    "a compiled model",
    "weights scaled at the end",
    "bfloat16",
    "a loss over two tokens",
    "every other batch dropped",
    "longer and longer rows",
}

TRAIN = (ROOT / "train.py").read_text()
BUDGET = "1e11flop"  # some six optimizer steps of the real train.py on rows of 64
# What CI trains of the real edits; `make attack` trains them all.
SOME = (
    "architecture_experts",
    "data_batch_schedule",
    "data_reordered",
    "optimizer_soup",
    "optimizer_weight_averages",
)


def of_train_py() -> dict[str, Edits]:
    """The good edits of the real train.py, of every category: name → what to replace by what."""
    found = {}
    for path in sorted((ROOT / "tests" / "agent" / "edits" / "good").glob("*.json")):
        edits = json.loads(path.read_text(encoding="utf-8"))["edits"]
        found[path.stem] = tuple((edit["search"], edit["replace"]) for edit in edits)
    return found
