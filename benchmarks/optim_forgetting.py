"""What does a model forget of text A while it learns text B, and does a memory of traces help or at least notice?

    python -m benchmarks.optim_forgetting [--quick] [--text FILE] [--seeds N] [--steps N] [--json FILE] [--plot FILE]

A is the text (without one, the prose of Python's own documentation), B source code of the standard library. AdamW for
so many steps on A, then as many on B: plain, with the pull of an ARTMemory that learns throughout, and with 5 % of B's
rows replaced by rows of A. Forgetting: the loss on A's held-out rows after B, less what it was before B.

Novelty: a memory taught on A by the plain model says of held-out rows of A and of B how badly their best trace matches;
the area under its ROC curve is the chance that a row of B looks newer than one of A. Two plain scores stand beside it:
the row's own loss, and the distance of its hidden state from the mean of A's.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import charlm, records
from train import ARTMemory

LR, REPLAY = 3e-3, 0.05
PLACES: dict[str, Callable[[Tensor], Tensor]] = {  # (B, T, C) -> (B, C)
    "last": lambda hidden: hidden[:, -1],
    "pooled": lambda hidden: hidden.mean(1),
}
Law = tuple[float, float, str]  # lam, the quantile of matches that is the vigilance, place
LAWS: tuple[Law, ...] = (
    *((lam, quantile, "last") for lam in (0.01, 1.0, 10.0) for quantile in (0.5, 0.9)),
    *((lam, 0.5, "pooled") for lam in (1.0, 10.0)),
)
QUANTILES = (0.1, 0.5, 0.9)  # for novelty
TAUGHT, ASKED = 512, 512  # rows a lesson, rows of A and of B


@dataclass
class Pull:
    """An ARTMemory that learns hidden states of every step. resonated: of each step, the share of inputs that did."""

    memory: ARTMemory
    place: str
    resonated: list[float] = field(default_factory=list)

    def __call__(self, hidden: Tensor) -> Tensor:
        x = PLACES[self.place](hidden)
        self.resonated.append(self.memory.resonate(self.memory.code(x.detach()))[2].float().mean().item())
        loss = self.memory.loss(x)
        self.memory.learn(x.detach())
        return loss


def replaying(draw: charlm.Draw, text: charlm.Text, seed: int) -> charlm.Draw:
    """Each row is one of `text` instead, by a chance of REPLAY."""
    generator = torch.Generator().manual_seed(seed + 1000)

    def mixed(step: int) -> Tensor:
        rows = draw(step)
        old = charlm.sample(text.train, len(rows), generator)
        chosen = torch.rand(len(rows), generator=generator) < REPLAY
        return torch.where(chosen[:, None], old, rows)

    return mixed


def loss_on(model: nn.Module, text: charlm.Text) -> float | None:
    return records.known(charlm.row_losses(model, charlm.held_rows(text)).mean().item())


def learn_both(
    a: charlm.Text, b: charlm.Text, seed: int, args: argparse.Namespace, law: Law | None = None, replay: bool = False
) -> tuple[dict[str, Any], nn.Module]:
    """A, then B, by one method. The losses; and the model as it was after A."""
    model, pull = charlm.build(args.width, seed), None
    if law is not None:
        lam, quantile, place = law
        pull = Pull(ARTMemory(args.width, quantile=quantile, lam=lam), place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)

    def make(_model: nn.Module) -> charlm.Update:  # one optimizer for both texts: its moments live on
        return lambda _loss: optimizer.step()

    first = charlm.train(model, charlm.stream(a.train, seed), args.steps, make, pull)
    row = {"a_before": loss_on(model, a), "b_before": loss_on(model, b)}
    after_a = charlm.build(args.width, seed)
    after_a.load_state_dict(model.state_dict())
    draw = charlm.stream(b.train, seed + 1)
    second = charlm.train(model, replaying(draw, a, seed) if replay else draw, args.steps, make, pull)
    row |= {"a_after": loss_on(model, a), "b_after": loss_on(model, b)}
    row |= {"finite": first.finite and second.finite, "seconds": round(first.seconds + second.seconds, 1)}
    return row | (art_facts(pull, args.steps) if pull else {}), after_a


def art_facts(pull: Pull, steps: int) -> dict[str, Any]:
    """Traces in use, and the share that resonated in the last tenth of A and of B, and in the first tenth of B."""
    tenth = max(1, steps // 10)
    spans = {
        "end_of_a": pull.resonated[steps - tenth : steps],
        "start_of_b": pull.resonated[steps : steps + tenth],
        "end_of_b": pull.resonated[-tenth:],
    }
    shares = {name: round(sum(span) / max(1, len(span)), 4) for name, span in spans.items()}
    return {"traces": int((pull.memory.uses > 0).sum()), "vigilance": round(pull.memory.vigilance.item(), 4)} | shares


def roc_auc(old: Tensor, new: Tensor) -> float:
    """The chance that a score of `new` is above one of `old`, ties half: Mann and Whitney's U over its maximum."""
    old = old.sort().values
    below = torch.searchsorted(old, new) + torch.searchsorted(old, new, right=True)
    return below.double().mean().item() / (2 * len(old))


def taught(hidden: Tensor, quantile: float) -> ARTMemory:
    """A memory of A's hidden states, lesson by lesson. hidden: (L, N, C)."""
    memory = ARTMemory(hidden.size(-1), max_traces=256, quantile=quantile, creations=16)
    for lesson in hidden:
        memory.learn(lesson)
    return memory


def no_resonance(memory: ARTMemory, x: Tensor) -> Tensor:
    """1 - the best match of each input. (N, C) -> (N,)."""
    match = memory.compare(memory.code(x), memory.traces)[1]
    return 1 - torch.where(memory.uses > 0, match, -torch.inf).amax(-1)


def novelty(model: nn.Module, a: charlm.Text, b: charlm.Text, seed: int, lessons: int) -> list[dict[str, Any]]:
    """A row for each score: its area under the curve, and for memories how often nothing resonated."""
    generator = torch.Generator().manual_seed(seed + 2000)
    rows = [charlm.sample(text.held, ASKED, generator) for text in (a, b)]
    losses = [charlm.row_losses(model, some) for some in rows]
    found = [{"score": "the row's own loss", "seed": seed, "auc": roc_auc(*losses)}]
    states = [charlm.hidden_states(model, some) for some in rows]
    taken = [charlm.hidden_states(model, charlm.sample(a.train, TAUGHT, generator)) for _ in range(lessons)]
    for name, place in PLACES.items():
        known, (old, new) = torch.stack([place(some) for some in taken]), map(place, states)
        middle = known.flatten(0, 1).mean(0)
        far = [(x - middle).norm(dim=-1) for x in (old, new)]
        found.append({"score": f"distance from A's mean, {name}", "seed": seed, "auc": roc_auc(*far)})
        for quantile in QUANTILES:
            memory = taught(known, quantile)
            auc = roc_auc(no_resonance(memory, old), no_resonance(memory, new))
            found.append({"score": f"no resonance, {name}, quantile {quantile}", "seed": seed, "auc": auc})
            shares = [1 - memory.resonate(memory.code(x))[2].float().mean().item() for x in (old, new)]
            found[-1] |= {"a_without": shares[0], "b_without": shares[1], "traces": int((memory.uses > 0).sum())}
    return found


def name_of(law: Law) -> str:
    lam, quantile, place = law
    return f"ART λ {lam:g}, quantile {quantile:g}, {place}"


def measure(a: charlm.Text, b: charlm.Text, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    runs, scores = [], []
    laws = LAWS[1:2] if args.quick else LAWS
    methods = {"plain": {}} | {name_of(law): {"law": law} for law in laws} | {f"replay {REPLAY:.0%}": {"replay": True}}
    for seed in range(1, args.seeds + 1):
        for name, how in methods.items():
            row, model = learn_both(a, b, seed, args, **how)
            runs.append({"method": name, "seed": seed} | row)
            print(f"seed {seed}  {name}: A {row['a_before']} → {row['a_after']}, B {row['b_after']}", flush=True)
            if name == "plain":
                scores += novelty(model, a, b, seed, lessons=2 if args.quick else 16)
    return {"runs": runs, "novelty": scores}


def tables(result: dict[str, Any]) -> str:
    head = ("method", "A before B", "A after B", "forgotten", "less plain", "B", "resonated: end of A, start of B")
    rows = []
    plain = {run["seed"]: forgotten(run) for run in result["runs"] if run["method"] == "plain"}
    for name in dict.fromkeys(run["method"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["method"] == name]
        less = [less_by(forgotten(run), plain[run["seed"]]) for run in runs]
        columns = [[run[key] for run in runs] for key in ("a_before", "a_after")]
        columns += [[forgotten(run) for run in runs]]
        shown = [records.mean_sd(column) for column in columns] + [records.mean_sd(less, "+.3f")]
        shown += [records.mean_sd([run["b_after"] for run in runs])]
        hits = [records.mean_sd([run.get(key) for run in runs], ".2f") for key in ("end_of_a", "start_of_b")]
        rows.append([name, *shown, ", ".join(hits) if "end_of_a" in runs[0] else ""])
    scored = []
    for name in dict.fromkeys(row["score"] for row in result["novelty"]):
        found = [row for row in result["novelty"] if row["score"] == name]
        columns = [[row.get(key) for row in found] for key in ("auc", "a_without", "b_without", "traces")]
        scored.append([name, *(records.mean_sd(column) for column in columns)])
    novel = ("novelty by", "ROC-AUC", "A without resonance", "B without resonance", "traces")
    return records.markdown(head, rows) + "\n\n" + records.markdown(novel, scored)


def less_by(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def forgotten(run: dict[str, Any]) -> float | None:
    return less_by(run["a_after"], run["a_before"])


def draw(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Left: what was forgotten against what was learned, a point a run. Right: how well each score tells B from A."""
    with records.drawing(args.plot, 1, 2, f"A: {result['a']}, then B: {result['b']}") as axes:
        left, right = axes[0]
        for i, name in enumerate(dict.fromkeys(run["method"] for run in result["runs"])):
            runs = [run for run in result["runs"] if run["method"] == name and run["finite"]]
            style = {"color": records.COLOURS[i % 8], "marker": records.MARKERS[i % 8], "label": name}
            style |= {"facecolors": "none"} if i >= 8 else {}
            left.scatter([run["b_after"] for run in runs], [forgotten(run) for run in runs], **style)
        left.set(xlabel="loss on B after B (nats a character)", ylabel="loss on A: after B less before B (nats)")
        left.set_title("forgetting: lower left is better", fontsize=10)
        left.legend(fontsize=6.5, frameon=False, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.55))
        names = list(dict.fromkeys(row["score"] for row in result["novelty"]))
        places = [names.index(row["score"]) for row in result["novelty"]]
        right.scatter([row["auc"] for row in result["novelty"]], places, color=records.COLOURS[2], marker="o")
        right.axvline(0.5, color="#9AA0A6", linewidth=1)
        right.set_yticks(range(len(names)), names, fontsize=7)
        right.set(xlabel="ROC-AUC of novelty, B against A (0.5: chance)")
        right.set_title("novelty: a point a seed", fontsize=10)


def options() -> argparse.Namespace:
    parser = records.options(__doc__)
    charlm.add_options(parser, steps=600)
    args = parser.parse_args()
    if args.quick:
        args.width, args.steps, args.seeds = 32, 60, 1
    return args


def main() -> None:
    args = options()
    prose = "\n".join(pydoc_data.topics.topics.values())
    a, b = charlm.read(args.text) if args.text else charlm.text_of("Python's documentation", prose), charlm.stdlib()
    result = records.facts(a=a.name, b=b.name, steps=args.steps, width=args.width, lr=LR, n=args.seeds)
    result |= measure(a, b, args)
    records.save(result, args.json)
    print("\n" + records.headline(result) + "\n" + tables(result))
    draw(result, args)


if __name__ == "__main__":
    main()
