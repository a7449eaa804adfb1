"""Progress bars for a person who is watching; silence for everybody else."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def progress_bar(enabled: bool, *, total: int | None, what: str, unit: str) -> Any:
    """A tqdm bar on stderr, shown only if `enabled` and stderr is a terminal; `unit` "B" counts in powers of 1000."""
    shown = enabled and sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=not shown, dynamic_ncols=True)


def counted(texts: Iterable[str], bar: Any) -> Iterator[str]:
    """The texts, while the bar moves by their length in characters."""
    for text in texts:
        bar.update(len(text))
        yield text
