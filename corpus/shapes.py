"""What a model of any size would do, on a CPU, in seconds and without memory: tensors with shapes and no numbers.

Runs in the child, beside prepare.py. The tensors are torch's FakeTensors, of which nearly every operation knows what it
would return; here it is written down besides how much memory they would hold.
"""

from __future__ import annotations

import logging
import sys
import traceback
import weakref
from types import TracebackType
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GUESSED = "shapes only: this depends on a number that is not there"
_UNKNOWABLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """peak: the most bytes that storages held at one time, of code that is not compiled.

    A script that asks a tensor for a number gets 1, or False; from there on its ways are made up, and the log says
    GUESSED. So it does where a shape depends on numbers, which ends the run.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}  # bytes of the storages that are alive, by address
        self.held = self.peak = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten._local_scalar_dense.default:
            print(GUESSED, flush=True)
            return False if args[0].dtype == torch.bool else 1
        try:
            made = op(*args, **(kwargs or {}))
        except _UNKNOWABLE:
            print(GUESSED, flush=True)
            raise
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
    own = [frame for frame in traceback.extract_tb(trace) if "/torch/" not in frame.filename]
    lines = [*traceback.format_list(own), *traceback.format_exception_only(kind, error)]
    print("Traceback (most recent call last):\n" + "".join(lines), end="", file=sys.stderr)
