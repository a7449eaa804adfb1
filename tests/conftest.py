"""Shared by all tests: a real git repository with a five-line train.py, and nothing of the user's own settings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandbox.isolation import Level, detect

FAKE_TRAIN = """\
import os, sys
LR = 0.5
loss = 1.0 + (LR - 0.1) ** 2
numbers = dict(training_seconds=0.1, total_seconds=0.2, peak_vram_mb=10.0, mfu_percent=1.0, total_tokens_M=0.1)
print("---", f"val_bpb: {loss:.6f}", *(f"{k}: {v}" for k, v in numbers.items()), sep="\\n")
print("num_steps: 10", "num_params_M: 0.1", "depth: 1", sep="\\n")
"""
# Where there is no bubblewrap the user says so, as everybody has to who lets a model's code run without it.
BARE = "" if detect().level is Level.BWRAP else 'sandbox = "process"\n'
CLAIMED = BARE + '[task]\nprofile = "claimed"\nfixed = []\n'


def git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_all(folder: Path, message: str = "start") -> str:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No git identity, no keys, no cache: tests see a bare machine."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OVERNIGHT_TRIAL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose train.py is FAKE_TRAIN and whose task takes the number it prints."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text(FAKE_TRAIN)
    (folder / "overnight.toml").write_text(CLAIMED)
    commit_all(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set of bytes, rows of 64, in a cache of its own that stays the current one."""
    from corpus.build import prepare_data

    folder = tmp_path_factory.mktemp("data")
    texts = folder / "texts"
    texts.mkdir()
    for n in range(60):
        (texts / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over it. " * (n % 7 + 1))
    return prepare_data(
        str(texts), cache=folder / "cache", vocab_size=257, max_seq_len=64, eval_tokens=640, workers=1, progress=False
    )
