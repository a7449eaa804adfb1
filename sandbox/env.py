"""The environment of a child: what it needs to compute, and nothing that opens a door."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_LOCAL = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "VIRTUAL_ENV", "CC", "CXX")
_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")
ALLOWED_NAMES = frozenset((*_LOCAL, *_LIBRARIES, *_DEVICES))
ALLOWED_PREFIXES = ("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "TRITON_")

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


def child_env(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """What a child may see of our environment, and `extra` on top.

    HOME is an empty place inside the cache, so neither ~/.netrc nor ~/.config is found by name; compilers keep what
    they build in the cache too. Raises ValueError if a name in `extra` looks like a secret.
    """
    for name in extra:
        if looks_secret(name):
            raise ValueError(f"expected no secret for a child, found the name {name}; a child never gets keys")
    cache = Path(os.environ.get("OVERNIGHT_CACHE") or Path.home() / ".cache" / "overnight").absolute()
    return {**_BARRIERS, **_compiler_caches(cache), **_inherited(os.environ), **_fixed(cache), **extra}


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    allowed = {name for name in environment if name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIXES)}
    return {name: environment[name] for name in sorted(allowed) if not looks_secret(name)}


def _compiler_caches(cache: Path) -> dict[str, str]:
    """Where torch and CUDA keep what they build, unless our own environment says another place."""
    compiled = cache / "compiled"
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        "CUDA_CACHE_PATH": str(compiled / "cuda"),
    }


def _fixed(cache: Path) -> dict[str, str]:
    return {
        "HOME": str(cache / "home"),
        "OVERNIGHT_CACHE": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
    }
