"""What a trial runs on. Asked of a child process: importing torch here would cost seconds and a CUDA context."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from agent.errors import StateError

# The collector would look through all that torch loads, while it does and again at the end: a second for nothing.
_PROBE = """
import atexit, gc, json, os, platform, time
gc.disable()
atexit.register(gc.freeze)
import torch
kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
if kind == "cuda":
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
else:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        name = models[0] if models else name
    name = f"{name} x{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
a = torch.randn(512, 512)
a @ a
rates = []
for _ in range(5):
    began = time.perf_counter()
    a @ a
    rates.append(2 * 512**3 / (time.perf_counter() - began))
print(json.dumps({"device": kind, "hardware": name, "torch": torch.__version__, "memory_gb": memory / 2**30,
                  "python": platform.python_version(), "cpu_gflops": sorted(rates)[2] / 1e9}))
"""


@dataclass(frozen=True)
class Machine:
    """device: cuda, mps or cpu. hardware: its name, with the number of usable cores for a CPU. memory_gb: GiB.

    cpu_gflops: measured on float32 matrix products, to guess how long a budget in FLOPs takes; it swings by half.
    """

    device: str
    hardware: str
    torch: str
    memory_gb: float
    python: str
    cpu_gflops: float

    @property
    def budget(self) -> str:
        """The budget a run gets when nobody says otherwise."""
        return "300s" if self.device == "cuda" else "2e13flop"

    def facts(self) -> dict[str, Any]:
        return asdict(self)


@cache
def probe() -> Machine:
    child = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise StateError(
            f"torch: expected to import in {sys.executable}, found: {last[0]}; run `make run` to install it"
        )
    return Machine(**json.loads(child.stdout.strip().splitlines()[-1]))
