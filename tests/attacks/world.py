"""Data for attacks on the number: real text, as bytes: this repository's own."""

from __future__ import annotations

from pathlib import Path

from corpus.build import prepare_data

ROOT = Path(__file__).parents[2]


def text_data(folder: Path) -> Path:
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
