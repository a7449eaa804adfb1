"""Data, feed, evaluation: the fixed half of the experiment. No trial may change this file.

    python prepare.py [--dataset stdlib|climbmix|tinystories|PATH] [--vocab-size N|bytes] …

makes the data once. A training script then needs four calls:

    feed = prepare.open_feed()              vocab_size, max_seq_len; the clock starts with the first real batch
    batch = feed.next(B, T)                 inputs and targets, int64 (B, T) each, or None when the budget is used up
    prepare.log(step=…, loss=…)             one line of the curve
    prepare.finish(model, config)           by hand: evaluate and print the summary; in a session: seal the checkpoint

The data and the clock live in a process of their own (corpus/serve.py); this side sees batches only. A session names
the run's settings in a file, OVERNIGHT_TRIAL; without it the same processes are started here.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BORN = time.monotonic()
atexit.register(gc.freeze)  # or the interpreter's last collections, of all that torch has loaded, take a second

# What a GPU machine gets …
MAX_SEQ_LEN = 2048
EVAL_TOKENS = 20 << 20
VOCAB_SIZE = 8192
TIME_BUDGET = "300s"
# … and a small one: low-entropy text needs few tokens, short rows and little evaluation to tell two edits apart.
SMALL_SEQ_LEN = 256
SMALL_EVAL_TOKENS = 1 << 17
SMALL_VOCAB_SIZE = 1024
SMALL_BUDGET = "2e13flop"

METERED_STEPS = 2  # whole optimizer steps, whatever they accumulate, whose FLOPs are counted

CHECKPOINT, CONFIG = "model.safetensors", "config.json"
CHUNK = 1 << 24  # bytes of a checkpoint sent at once


def _settings() -> dict[str, Any]:
    path = os.environ.get("OVERNIGHT_TRIAL")
    return json.loads(Path(path).read_text()) if path else {}


TRIAL = _settings()
SEED: int = TRIAL.get("seed", 42)


def device() -> Any:
    """torch.device: the one the session asks for, else cuda, mps, cpu, whichever comes first."""
    import torch

    if TRIAL.get("device"):
        return torch.device(TRIAL["device"])
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def machine() -> Any:
    """torch.device: the one to choose constants for. A session looks at a GPU's on the CPU."""
    import torch

    return torch.device(TRIAL["machine"]) if TRIAL.get("machine") else device()


# Dense bfloat16 FLOP/s by device name, from the makers' data sheets.
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def peak_flops(dtype: Any) -> float:
    """FLOP/s of the device: from the table; on a CPU measured, in `dtype`; 0 where neither is known."""
    import torch

    if device().type == "cpu":
        x = torch.randn(768, 768, dtype=dtype)
        return 2 * 768**3 / min(stopwatch(lambda: x @ x) for _ in range(5))
    name = torch.cuda.get_device_name() if device().type == "cuda" else ""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), 0.0)


def stopwatch(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes, on a GPU until it has finished there."""
    import torch

    wait = torch.cuda.synchronize if device().type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


# ── the feed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Batch(NamedTuple):
    """inputs, targets: int64 (B, T) on the device; targets are the inputs shifted by one."""

    inputs: Any
    targets: Any


class Feed:
    """The one source of training data, and what it says of the budget.

    vocab_size, max_seq_len, bos_id: of the data. progress: share of the budget used, [0, 1]. tokens, seconds: so far.
    """

    def __init__(self, link: Connection, device: Any) -> None:
        self._link, self._device = link, device
        self._meter: Meter | None = None
        self._events: list[Any] = []
        self._facts: dict[str, Any] = {"progress": 0.0, "tokens": 0, "seconds": 0.0}
        hello, _ = self._ask("hello")
        self.vocab_size, self.max_seq_len, self.bos_id = hello["vocab_size"], hello["max_seq_len"], hello["bos_id"]
        self._count_flop = hello["count_flop"]

    @property
    def progress(self) -> float:
        if TRIAL.get("smoke") and self._meter is not None:  # the second of its steps sees the schedules half way
            return self._meter.steps / METERED_STEPS
        return float(self._facts["progress"])

    @property
    def tokens(self) -> int:
        return int(self._facts["tokens"])

    @property
    def seconds(self) -> float:
        return float(self._facts["seconds"])

    def warmup(self, B: int, T: int) -> Batch:
        """Random tokens, to compile and warm up on before the clock starts. Free up to an allowance."""
        _, tokens = self._ask("warmup", B=B, T=T)
        return self._batch(tokens)

    def next(self, B: int, T: int) -> Batch | None:
        """The next batch, or None, for ever, when the budget is used up. B and T may change from call to call."""
        self._bound_steps_in_flight()
        if self._measured():
            return None
        facts, tokens = self._ask("next", B=B, T=T)
        self._facts = facts
        if tokens is None:
            self._stop_counting()
            return None
        return self._batch(tokens)

    def seal(self, config: Any = None, weights: bytes = b"") -> dict[str, Any]:
        """Hand the checkpoint over; what the feeder counted. From here on nothing can be changed about the run."""
        self._link.send_bytes(json.dumps({"op": "seal", "config": config, "bytes": len(weights)}).encode())
        for start in range(0, len(weights), CHUNK):
            self._link.send_bytes(memoryview(weights)[start : start + CHUNK])
        facts, _ = _read(self._link)
        return facts

    def note(self, op: str, **fields: Any) -> None:
        """Tell the feeder something that it keeps and does not answer with anything new."""
        self._ask(op, **fields)

    def _ask(self, op: str, **fields: Any) -> tuple[dict[str, Any], np.ndarray | None]:
        self._link.send_bytes(json.dumps({"op": op, **fields}).encode())
        return _read(self._link)

    def _batch(self, tokens: np.ndarray | None) -> Batch:
        import torch

        assert tokens is not None
        rows = torch.from_numpy(tokens.astype(np.int64))
        if self._device.type == "cuda":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
        else:
            rows = rows.to(self._device)
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def _bound_steps_in_flight(self) -> None:
        """A GPU queues work far ahead of the clock: wait for all steps but the last, so at most two are in flight."""
        if self._device.type != "cuda":
            return
        import torch

        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > 1:
            self._events.pop(0).synchronize()

    def _measured(self) -> bool:
        """Count the FLOPs of the first whole steps where nobody has yet; whether a smoke run is over with that."""
        if self._count_flop and self._meter is None:
            if STARTUP is not None:
                self._ask("started", startup_flop=STARTUP.close())
            self._meter = Meter()
        elif self._count_flop and self._meter.at_draw() >= METERED_STEPS:
            self._stop_counting()
        return bool(TRIAL.get("smoke")) and not self._count_flop

    def _stop_counting(self) -> None:
        if self._meter is None or not self._count_flop:
            return
        self._count_flop = False
        facts, _ = self._ask("measured", flop_per_token=self._meter.close() / max(1, self.tokens))
        self._facts = facts


class Meter:
    """FLOPs of everything since it was made, and how many optimizer steps were finished when a batch was drawn.

    Several optimizers that step between two draws are one step; draws without one between them accumulate gradients.
    """

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.steps, self._stepped = 0, False
        self._hook = register_optimizer_step_post_hook(self._step)
        self._counter = flop_counter()
        self._counter.__enter__()

    def _step(self, *_: Any) -> None:
        self._stepped = True

    def at_draw(self) -> int:
        self.steps, self._stepped = self.steps + self._stepped, False
        return self.steps

    def close(self) -> int:
        self._counter.__exit__(None, None, None)
        self._hook.remove()
        return int(self._counter.get_total_flops())


def flop_counter() -> Any:
    """torch's FlopCounterMode, taught the CPU's fused attention, which torch itself counts as nothing."""
    import torch
    from torch.utils import flop_counter as torch_counter

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    known = {
        attention: lambda q, k, v, *_, **__: torch_counter.sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *_, **__: torch_counter.sdpa_backward_flop_count(grad, q, k, v),
    }
    return torch_counter.FlopCounterMode(display=False, custom_mapping=known)


def _read(link: Connection) -> tuple[dict[str, Any], np.ndarray | None]:
    facts = json.loads(link.recv_bytes())
    if "error" in facts:
        raise ValueError(facts["error"])
    shape = facts.pop("shape")
    return facts, None if shape is None else np.frombuffer(link.recv_bytes(), "<u2").reshape(shape)


SHAPES: Any = None  # of a look at what a GPU would train: tensors have shapes only
if TRIAL.get("shapes"):
    from shapes import shapes_only  # type: ignore[import-not-found]  # corpus/shapes.py, beside this file then

    SHAPES = shapes_only()
STARTUP = Meter() if TRIAL.get("smoke") else None  # what is computed before the first batch
_feed: Feed | None = None


def open_feed() -> Feed:
    """The run's feed: the same one however often it is opened."""
    global _feed
    if _feed is None:
        keep_memory()
        seed_all()
        link = Connection(TRIAL["fd"]) if TRIAL else _serve("feed", {"budget": _budget(), "seed": SEED})
        _feed = Feed(link, device())
    return _feed


def seed_all() -> None:
    """Every generator that a script may forget to seed, by the run's seed."""
    import torch

    torch.manual_seed(SEED)
    np.random.seed(SEED % 2**32)
    random.seed(SEED)


def keep_memory() -> None:
    """Let glibc keep large tensors that were freed: asking the kernel for each anew costs a CPU an eighth of a step.

    M_TRIM_THRESHOLD (-1) and M_MMAP_THRESHOLD (-3) of mallopt(3); other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option in (-1, -3):
            libc.mallopt(option, 2**31 - 1)


def _budget() -> str:
    default = TIME_BUDGET if device().type == "cuda" else SMALL_BUDGET
    return os.environ.get("OVERNIGHT_BUDGET", default)


def _data() -> Path:
    """The data set of a run by hand; one line and exit 1 when there is none."""
    from corpus.errors import DataError
    from corpus.home import data_folder

    try:
        return data_folder()
    except DataError as error:
        raise SystemExit(str(error)) from None


def _serve(role: str, spec: dict[str, Any]) -> Connection:
    """Start the feeder or the referee for a run by hand: the same process that a session starts."""
    ours, theirs = socket.socketpair()
    spec |= {"data": str(_data()), "fd": theirs.fileno()}
    with theirs:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "corpus.serve", role, json.dumps(spec)],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
    return Connection(ours.detach())


# ── log and finish ────────────────────────────────────────────────────────────────────────────────────────────────────

_last_log: dict[str, Any] = {}


def log(**fields: Any) -> None:
    """One line of the curve: numbers by name, at least `step` and `loss`. Reads tensors: call it at log steps only."""
    if SHAPES is not None:
        return
    row = {key: value.item() if hasattr(value, "item") else value for key, value in fields.items()}
    feed = open_feed()
    row |= {"progress": round(feed.progress, 5), "tokens": feed.tokens, "seconds": round(feed.seconds, 3)}
    _last_log.update(row)
    if TRIAL:
        feed.note("log", row=row)
    shown = (f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print(" | ".join(shown), flush=True)


def finish(model: Any, config: Any) -> None:
    """End of training. config: a dataclass from which `build_model(config)` builds the module again."""
    if SHAPES is not None:
        rehearse({"config": dataclasses.asdict(config)}, None)
    elif TRIAL:
        described, weights = checkpoint(model, config)
        open_feed().seal(described, weights)
        if TRIAL.get("smoke"):
            rehearse(described, weights)
    if TRIAL:
        return
    from sandbox.metrics import Metrics, format_summary

    facts = open_feed().seal()
    link = _serve("referee", {"tell": True})
    result = evaluate_bpb(model, link, device())
    run = {"training_seconds": facts["seconds"], "total_tokens_M": facts["tokens"] / 1e6, "num_steps": facts["steps"]}
    total = time.monotonic() - BORN
    metrics = Metrics(result["val_bpb"], total_seconds=total, **run, **model_facts(model, config))
    print(format_summary(metrics), flush=True)


def checkpoint(model: Any, config: Any) -> tuple[dict[str, Any], bytes]:
    """What scoring needs: the config and facts of the model (JSON can hold them), and its weights as safetensors."""
    from safetensors.torch import save

    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        held = tensor.detach().cpu().contiguous()
        place = held.untyped_storage().data_ptr()
        state[name.removeprefix("_orig_mod.")] = held.clone() if place in seen else held  # tied: safetensors wants two
        seen.add(place)
    return {"config": dataclasses.asdict(config), "facts": model_facts(model, config)}, save(state)


def model_facts(model: Any, config: Any) -> dict[str, Any]:
    """What the summary says besides the score. peak_vram_mb: peak RSS where there is no GPU."""
    import torch

    if device().type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    named = (getattr(config, name, None) for name in ("depth", "n_layer", "num_layers"))
    depth = next((value for value in named if isinstance(value, int) and value > 0), 1)
    return {
        "num_params_M": sum(p.numel() for p in model.parameters()) / 1e6,
        "mfu_percent": float(_last_log.get("mfu", 0.0)),
        "peak_vram_mb": peak,
        "depth": depth,
    }


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────────


def evaluate_bpb(model: Any, link: Connection, where: Any) -> dict[str, Any]:
    """Answer the referee's rows until it has seen enough; what it says at the end.

    Validation bits per byte: nats of the target tokens / bytes of those tokens / ln 2, special tokens in neither. The
    referee sums; this side only ever sees the rows of one batch. An auditor asks for logits at one place of each row.
    """
    import torch

    model.eval()
    forward_flop = None
    with torch.inference_mode():
        while True:
            facts, rows = _read(link)
            if rows is None:
                link.send_bytes(json.dumps({"forward_flop_per_token": forward_flop}).encode())
                return facts
            tokens = torch.from_numpy(rows.astype(np.int64)).to(where)
            counter = flop_counter() if forward_flop is None else None
            with counter or contextlib.nullcontext():
                answer = logits_at(model, tokens, facts["at"]) if "at" in facts else token_nats(model, tokens)
            if counter is not None:
                forward_flop = counter.get_total_flops() / tokens[:, 1:].numel()
            link.send_bytes(answer.cpu().numpy().astype("<f4").tobytes())


def logits_of(model: Any, idx: Any) -> Any:
    """idx: int64 (B, T) -> float32 (B, T, V)."""
    logits = model(idx)
    if logits.dim() != 3 or logits.shape[:2] != idx.shape:
        raise ValueError(
            f"scoring: expected logits of shape (B, T, V), found {tuple(logits.shape)} for tokens {tuple(idx.shape)}"
        )
    return logits.float()


def token_nats(model: Any, rows: Any) -> Any:
    """rows: int64 (B, T + 1) -> float32 (B, T), −log p of each next token."""
    import torch.nn.functional as F

    logits = logits_of(model, rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)


def logits_at(model: Any, rows: Any, places: list[int]) -> Any:
    """rows: int64 (B, T + 1), places: B positions -> float32 (B, V), the logits of what follows each position."""
    import torch

    return logits_of(model, rows[:, :-1])[torch.arange(len(rows)), places]


def load_model(described: dict[str, Any], weights: bytes | None) -> Any:
    """The candidate's module with the sealed weights, if there are any, in the working folder of a scoring run."""
    from safetensors.torch import load

    sys.path.insert(0, str(Path.cwd()))
    import train

    model = train.build_model(train.GPTConfig(**described["config"])).to(device())
    if weights is not None:
        model.load_state_dict(load(weights), strict=True)
    return model


def rehearse(described: dict[str, Any], weights: bytes | None) -> None:
    """What scoring will do with the checkpoint, on one row: found here, a fault costs no budget."""
    import torch

    feed, length = open_feed(), open_feed().max_seq_len
    peak, guesses = (SHAPES.peak, SHAPES.guesses) if SHAPES is not None else (0, 0)
    tokens = np.random.default_rng(0).integers(feed.vocab_size, size=(1, length + 1))
    rows = torch.from_numpy(tokens).to(device())
    model = load_model(described, weights).eval()
    with torch.inference_mode(), flop_counter() as counter:
        token_nats(model, rows)
    forward = counter.get_total_flops() / length
    if SHAPES is None:
        feed.note("rehearsed", forward_flop_per_token=forward)
    else:
        known = forward if SHAPES.guesses == guesses else None
        feed.note("rehearsed", forward_flop_per_token=known, shapes_mb=peak / 2**20 if SHAPES.fused else None)


def score() -> None:
    gc.disable()  # while torch is loaded
    described = json.loads(Path(CONFIG).read_text())
    model = load_model(described, Path(CHECKPOINT).read_bytes())
    gc.enable()
    evaluate_bpb(model, Connection(TRIAL["fd"]), device())


# ── command line ──────────────────────────────────────────────────────────────────────────────────────────────────────


def vocabulary(text: str) -> int:
    """Tokens; for `bytes` one of each, and the beginning of a document."""
    if text != "bytes" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number of tokens, or bytes, found {text!r}")
    return 257 if text == "bytes" else int(text)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the data that train.py trains on. Idempotent and resumable.")
    parser.add_argument(
        "--dataset", default="stdlib", help="stdlib (default, no network), climbmix, tinystories, or a path"
    )
    parser.add_argument(
        "--vocab-size",
        type=vocabulary,
        help=f"tokens, or `bytes` (default {VOCAB_SIZE}; {SMALL_VOCAB_SIZE} on a small machine)",
    )
    parser.add_argument(
        "--seq-len", type=int, help=f"row length (default {MAX_SEQ_LEN}; {SMALL_SEQ_LEN} on a small machine)"
    )
    parser.add_argument(
        "--eval-tokens", type=int, help=f"default {EVAL_TOKENS}; {SMALL_EVAL_TOKENS} on a small machine"
    )
    parser.add_argument("--shards", type=int, default=10, help="shards to download of climbmix (default 10)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--small", action=argparse.BooleanOptionalAction, help="settings of a small machine (default: no GPU here)"
    )
    return parser.parse_args()


def main() -> None:
    from corpus.build import prepare_data
    from corpus.errors import DataError
    from corpus.home import cache

    args = options()
    small = device().type != "cuda" if args.small is None else args.small
    try:
        folder = prepare_data(
            args.dataset,
            cache=cache(),
            vocab_size=args.vocab_size or (SMALL_VOCAB_SIZE if small else VOCAB_SIZE),
            max_seq_len=args.seq_len or (SMALL_SEQ_LEN if small else MAX_SEQ_LEN),
            eval_tokens=args.eval_tokens or (SMALL_EVAL_TOKENS if small else EVAL_TOKENS),
            shards=args.shards,
            workers=args.workers,
            progress=True,
        )
    except (DataError, ValueError) as error:
        raise SystemExit(f"prepare: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("prepare: interrupted; run the same command again to go on where it stopped") from None
    meta = json.loads((folder / "meta.json").read_text())
    print(
        f"{meta['dataset']}: {meta['train_tokens'] / 1e6:.2f}M training tokens, vocabulary {meta['vocab_size']}, "
        f"data id {meta['data_id']}"
    )
    print(folder)


if __name__ == "__main__":
    score() if sys.argv[1:] == ["score"] else main()
