"""What a model of any size would do, on a CPU, in seconds and without memory: tensors with shapes and no numbers.

Runs in the child, beside prepare.py. The tensors are torch's FakeTensors, of which nearly every operation knows what it
would return; here it is written down besides how much memory they would hold.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GUESSED = "shapes only: this depends on a number, or on a device, that is not there"
# What torch says of a FakeTensor where a tensor would do, and of a GPU where there is none: not the script's fault.
_OURS = re.compile(r"fake|subclass|meta|NYI|implement|data.?p(oin)?t|cuda|nvidia|\bgpu|device|backend|driver", re.I)
_TORCH = str(Path(torch.__file__).parent)
_UNKNOWABLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """peak: the most bytes that storages held at one time, of code that is not compiled.

    A script that asks a tensor for a number gets 1, or False; from there on its ways are made up, and the log says
    GUESSED. So it does where a shape depends on numbers, which ends the run. guesses: how many.
    fused: that all attention was; a CPU's is not with dropout or a learned bias, where a GPU's is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}  # bytes of the storages that are alive, by address
        self.held = self.peak = self.guesses = 0
        self.fused = True

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            made = op(*args, **(kwargs or {}))
        except _UNKNOWABLE:
            self.guesses += 1
            print(GUESSED, flush=True)
            if op is not torch.ops.aten._local_scalar_dense.default:
                raise
            return False if args[0].dtype == torch.bool else 1
        self.fused = self.fused and op is not torch.ops.aten._safe_softmax.default
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self.sizes:
            self.sizes[place] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._drop, place)

    def _drop(self, place: int) -> None:
        self.held -= self.sizes.pop(place)


def shapes_only() -> Held:
    """From here on, in the whole process."""
    fake, held = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), Held()
    # It would refer weakly to each tensor it makes, and such a tensor cannot be moved by Module.to.
    fake.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]
    fake.__enter__()
    held.__enter__()  # type: ignore[no-untyped-call]
    sys.excepthook = _own_frames
    logging.disable(logging.ERROR)  # torch logs them besides raising them
    return held


def _own_frames(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback without torch's own dozens of frames below the script's."""
    if _OURS.search(f"{kind.__name__}: {error}"):
        print(GUESSED, flush=True)
    own = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(_TORCH)]
    lines = [*traceback.format_list(own), *traceback.format_exception_only(kind, error)]
    print("Traceback (most recent call last):\n" + "".join(lines), end="", file=sys.stderr)
