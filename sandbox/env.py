"""The environment of a child: what it needs to compute, and nothing that opens a door."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_LOCAL = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV", "CC", "CXX")
_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")
ALLOWED_NAMES = frozenset((*_LOCAL, *_LIBRARIES, *_DEVICES))
ALLOWED_PREFIXES = ("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "TRITON_")
_PLACES = ("_DIR", "_HOME", "_PATH")  # of those with the prefixes: where tools keep files, which no two runs may share

# OpenMP threads that wait: look 1,000 times, then sleep. libgomp's default looks for milliseconds, which takes the core
# from the thread waited for as soon as anything else runs on the machine.
_BARRIERS = {"GOMP_SPINCOUNT": "1000"}

# Whole words between underscores: TOKENIZERS_PARALLELISM is none, APIKEY, API_KEY and HF_TOKEN are.
_SECRET = re.compile(
    r"(?:KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH)(?:_|$)|SECRET|PASSWORD|CREDENTIAL",
    re.IGNORECASE,
)


def looks_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


def child_env(folder: Path, extra: Mapping[str, str] = {}) -> dict[str, str]:
    """What a child that works in `folder` may see of our environment, and `extra` on top.

    HOME is an empty place in that folder, so neither ~/.netrc nor ~/.config is found by name; what compilers keep is
    there too, whatever our own environment says: shared, it would be a way from one trial's code into the next one's.
    Raises ValueError if a name in `extra` looks like a secret.
    """
    for name in extra:
        if looks_secret(name):
            raise ValueError(f"expected no secret for a child, found the name {name}; a child never gets keys")
    cache = Path(os.environ.get("OVERNIGHT_CACHE") or Path.home() / ".cache" / "overnight").absolute()
    return {**_BARRIERS, **_inherited(os.environ), **own(f"{folder.absolute()}/.home"), **_fixed(cache), **extra}


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    prefixed = {name for name in environment if name.startswith(ALLOWED_PREFIXES) and not name.endswith(_PLACES)}
    allowed = prefixed | (ALLOWED_NAMES & environment.keys())
    return {name: environment[name] for name in sorted(allowed) if not looks_secret(name)}


def own(home: str) -> dict[str, str]:
    """Where the tools of one run keep what they build."""
    return {
        "HOME": home,
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
        "TRITON_CACHE_DIR": f"{home}/triton",
        "CUDA_CACHE_PATH": f"{home}/cuda",
    }


def _fixed(cache: Path) -> dict[str, str]:
    return {
        "OVERNIGHT_CACHE": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
    }
