"""What benchmarks have in common at the end: raw results with their origin, markdown tables, plots."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_bars import machine

# Okabe and Ito's palette, told apart by all kinds of eyes (https://jfly.uni-koeln.de/color/); styles differ too.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#9A8F00")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = "os^Dvp*X"


def options(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than a minute: shows that it works, no result")
    parser.add_argument("--json", type=Path, help="keep the raw results here")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG file")
    return parser


def facts(**more: Any) -> dict[str, Any]:
    """Where and when a result came to be."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {"date": today, "machine": machine(), **gpu, "torch": torch.__version__}
    return found | {"threads": torch.get_num_threads()} | more


def headline(result: dict[str, Any]) -> str:
    where = f"{result['gpu']}, " if "gpu" in result else ""
    return f"{result['date']}, {where}{result['machine']}, torch {result['torch']}, {result['threads']} threads\n"


def save(result: dict[str, Any], path: Path | None) -> None:
    """JSON, a list of numbers on one line."""
    if path is not None:
        text = json.dumps(result, indent=1, allow_nan=False)
        path.write_text(re.sub(r"\[\s[^][{}\"]*\]", lambda hit: re.sub(r"\s+", " ", hit[0]), text) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def mean_sd(values: Sequence[float | None], form: str = ".3f") -> str:
    """Mean ± standard deviation of what is known, and how many that are where some are not."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):{form.lstrip('+')}}" if len(known) > 1 else ""
    short = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.fmean(known):{form}}{spread}{short}"


def known(value: float, digits: int = 5) -> float | None:
    """A number for JSON, which has none that is not finite."""
    return round(value, digits) if abs(value) < float("inf") else None


def thinned(values: Sequence[float], every: int = 10, digits: int = 4) -> list[float | None]:
    """Means of `every` values in turn: small files, smoother lines."""
    return [known(statistics.fmean(values[i : i + every]), digits) for i in range(0, len(values), every)]


@contextmanager
def drawing(path: Path | None, rows: int, columns: int, title: str) -> Iterator[Any]:
    """An array of (rows, columns) axes; afterwards `path` holds the picture. No path: nothing is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, 1.5 + 4.2 * columns), 1.0 + 2.6 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(color="#E6E8EB", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    yield axes
    if path is not None:
        figure.savefig(path)
