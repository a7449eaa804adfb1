"""progress.png: every trial of a ledger, what was kept, and the best so far."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import StateError
from agent.ledger import kept
from agent.replay import SIGN, Replay, Step, in_class, replay
from agent.values import Record, Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart by all kinds of eyes (https://jfly.uni-koeln.de/color/); shapes differ as well.
KEEP, BEST, CRASH, FAINT, INK = "#0072B2", "#009E73", "#D55E00", "#9AA0A6", "#30363C"
SIZE, DPI = (11.0, 5.5), 160  # inches, dots per inch
LABEL = 40  # characters of a description
ABOVE = 0.3  # height left for discards worse than the baseline, as a share of the height of the staircase


def plot(records: Sequence[Record], path: Path, title: str, direction: str = "min") -> None:
    """Draw `records`, oldest first, into the PNG file `path`. direction: min or max is better.

    Raise StateError if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only reports need it
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes, result = figure.subplots(), replay(records, direction)
    numbers = [row if record.trial is None else record.trial for row, record in enumerate(records)]
    good, bad = _limits(records, result)
    better = "lower" if direction == "min" else "higher"
    axes.set(xlabel="trial", ylabel=f"validation bits per byte ({better} is better)", ylim=sorted((good, bad)))
    axes.set_xlim(min(numbers, default=0) - 1, max(numbers, default=0) + 1 + len(records) * 0.02)
    axes.set_title(_heading(title, result), loc="left", fontsize=11, pad=22)
    axes.grid(axis="y", color="#E6E8EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    _points(axes, records, numbers, bad, SIGN[direction])
    _failures(axes, records, numbers)
    _staircase(axes, result, max(numbers, default=0))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 0.99), frameon=False, fontsize=8.5, ncols=6, columnspacing=1.2
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a description may be in any script
        canvas.draw()  # labels need to know where things came to lie
        _labels(axes, result, canvas.get_renderer())
        try:
            figure.savefig(path)
        except OSError as error:
            why = error.strerror or error
            raise StateError(f"expected to write the plot {path}, found: {why}; name another file") from error


def _heading(title: str, result: Replay) -> str:
    # A dollar sign would begin a formula.
    head = f"{title}: {result.experiments} experiments, {result.keep} kept".replace("$", r"\$")
    if result.baseline is None or result.best is None:
        return head
    return f"{head}, {result.baseline:.4f} → {result.best:.4f}"


def _limits(records: Sequence[Record], result: Replay) -> tuple[float, float]:
    """Best and worst value shown: the staircase fills most of the height; a discard far off does not flatten it."""
    sign = SIGN[result.direction]
    values = sorted(sign * record.val_bpb for record in in_class(records) if record.val_bpb is not None)
    if result.baseline is None or result.best is None:
        return 0.0, 1.0
    baseline, best = sign * result.baseline, sign * result.best
    gain = max(baseline - best, abs(best) * 1e-3)
    high = max(min(values[-1], baseline + ABOVE * gain), baseline)
    low = max(values[0], best - gain)
    margin = 0.06 * max(high - low, gain)
    return sign * (min(low, best) - 2.5 * margin), sign * (high + margin)


def _points(axes: Axes, records: Sequence[Record], numbers: Sequence[int], bad: float, sign: int) -> None:
    """Discards faint, keeps bold; what is worse than the frame shows is marked at its edge `bad`."""
    ranked = {id(record) for record in in_class(records)}
    shown = [(x, record) for x, record in zip(numbers, records, strict=True) if id(record) in ranked]
    faint = [(x, record.val_bpb or 0.0) for x, record in shown if not kept(record)]
    inside = [point for point in faint if sign * (point[1] - bad) <= 0]
    outside = [point for point in faint if sign * (point[1] - bad) > 0]
    _scatter(axes, inside, "not kept", s=16, color=FAINT, alpha=0.65, linewidths=0)
    edge, marker = [(x, bad) for x, _ in outside], "^" if sign > 0 else "v"
    _scatter(
        axes, edge, "not kept, off the scale", s=26, color=FAINT, marker=marker, linewidths=0, clip_on=False, zorder=3
    )
    bold = [(x, record.val_bpb or 0.0) for x, record in shown if kept(record)]
    _scatter(axes, bold, "kept", s=38, color=KEEP, edgecolors="white", linewidths=0.8, zorder=5)


def _scatter(axes: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    if points:
        axes.scatter([x for x, _ in points], [y for _, y in points], label=f"{label} ({len(points)})", **style)


def _failures(axes: Axes, records: Sequence[Record], numbers: Sequence[int]) -> None:
    """Trials without a number worth showing, as ticks on the lower edge."""
    for status, color in ((Status.CRASH, CRASH), (Status.REJECT, FAINT)):
        xs = [x for x, record in zip(numbers, records, strict=True) if record.status == status]
        if xs:
            label = f"{status} ({len(xs)})"
            axes.plot(xs, [0.0] * len(xs), "|", color=color, markersize=13, markeredgewidth=1.8, label=label,
                      transform=axes.get_xaxis_transform(), clip_on=False, zorder=6)  # fmt: skip


def _staircase(axes: Axes, result: Replay, last: int) -> None:
    if result.frontier:
        xs = [step.trial for step in result.frontier] + [last]
        ys = [step.val_bpb for step in result.frontier] + [result.frontier[-1].val_bpb]
        axes.step(xs, ys, where="post", color=BEST, linewidth=1.8, label="best kept", zorder=4)


def _labels(axes: Axes, result: Replay, renderer: Any) -> None:
    """Descriptions of the steps, largest gains first, each where it covers neither another nor a kept point."""
    from matplotlib.patheffects import withStroke

    taken = [_around(axes, step) for step in result.frontier]
    for step in sorted(result.frontier, key=lambda step: (step.gain > 0, -step.gain)):
        for offset, place in (((-6, -4), "right"), ((7, 4), "left"), ((-6, -15), "right"), ((7, 15), "left")):
            text = axes.annotate(
                _short(step.description), (step.trial, step.val_bpb), xytext=offset, textcoords="offset points",
                ha=place, va="bottom" if offset[1] > 0 else "top", fontsize=7.5, color=INK, zorder=7, parse_math=False,
                path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.85)],
            )  # fmt: skip
            box = text.get_window_extent(renderer).padded(1.5)
            if axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) and not any(map(box.overlaps, taken)):
                taken.append(box)
                break
            text.remove()


def _around(axes: Axes, step: Step) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((step.trial, step.val_bpb))
    return Bbox([(x - 6, y - 6), (x + 6, y + 6)])


def _short(description: str) -> str:
    return description if len(description) <= LABEL else description[: LABEL - 1].rstrip() + "…"
