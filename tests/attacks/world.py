"""Data for attacks on the number: real text, as bytes: this repository's own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from corpus.build import prepare_data

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def text_data() -> Iterator[Path]:
    """Where only the mount namespace hides it: anybody may read it, and no memory lies over the place inside."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield _text_data(Path(name))


def _text_data(folder: Path) -> Path:
    texts = folder / "texts"
    texts.mkdir(parents=True)
    for path in sorted((ROOT / "agent").rglob("*.py")):
        (texts / f"{path.stem}.txt").write_text(path.read_text())
    data = prepare_data(
        str(texts),
        cache=folder / "cache",
        vocab_size=257,
        max_seq_len=64,
        eval_tokens=16384,
        workers=1,
        progress=False,
    )
    (data / "other.safetensors").touch()
    return data
