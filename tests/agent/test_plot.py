import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from agent.errors import StateError
from agent.ledger import read
from agent.report.plot import plot
from agent.values import Record

DATA = Path(__file__).parents[1] / "data"
BLUE, GREEN, ORANGE = (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)


def colours(path: Path) -> set[tuple[int, ...]]:
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (880, 1760)
    flat = (pixels[:, :, :3].reshape(-1, 3) * 255).round().astype(int)
    codes = set((flat @ [1 << 16, 1 << 8, 1]).tolist())
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}


@pytest.mark.parametrize("name", ["five_columns.tsv", "odd_columns.tsv"])
def test_keeps_staircase_and_crashes_are_drawn(tmp_path: Path, name: str) -> None:
    plot(read(DATA / name), tmp_path / "progress.png", name)
    assert {BLUE, GREEN, ORANGE} <= colours(tmp_path / "progress.png")


def test_hardly_anything_to_draw(tmp_path: Path) -> None:
    baseline = Record("abcdef0", 1.4, 1.0, "keep", "a $x^2 formula_ and 例え", trial=0)
    crash = Record("abcdef1", None, None, "crash", "x", trial=1)
    for number, records in enumerate(([], [baseline], [crash], [baseline, crash])):
        path = tmp_path / f"{number}.png"
        plot(records, path, "costs $5 or $6")
        assert (BLUE in colours(path)) == (baseline in records)
        assert (ORANGE in colours(path)) == (crash in records)


def test_a_number_far_off_and_a_forged_one_do_not_flatten_the_plot(tmp_path: Path) -> None:
    """The rows of the picture that the staircase spans: most of the height, whatever else was measured."""
    night = [Record("a", 1.4 - 0.01 * i, 1.0, "keep", "x") for i in range(4)]
    strange = [Record("a", 90.0, 1.0, "discard", "x"), Record("a", 1e-4, 1.0, "reject", "x")]
    path = tmp_path / "progress.png"
    plot(night + strange, path, "t")
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int)
    green = (pixels == GREEN).all(axis=2).sum(axis=1).nonzero()[0]
    green = green[green > 100]  # below the legend
    assert green.max() - green.min() > 440


@pytest.mark.parametrize(("direction", "sign"), [("min", 1), ("max", -1)])
def test_the_staircase_goes_the_way_that_is_better(tmp_path: Path, direction: str, sign: int) -> None:
    night = [Record("a", 1.4 - sign * 0.01 * i, 1.0, "keep", "", trial=i) for i in range(4)]
    plot([*night, Record("a", 1.4 + sign, 1.0, "discard", "", trial=4)], tmp_path / "p.png", "t", direction)
    pixels = (matplotlib.image.imread(tmp_path / "p.png")[100:, :, :3] * 255).round().astype(int)
    rows, columns = (pixels == GREEN).all(axis=2).nonzero()
    first, last = rows[columns < columns.min() + 50].mean(), rows[columns > columns.max() - 50].mean()
    assert sign * (last - first) > 300


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="name another file"):
        plot([], tmp_path / "no" / "folder.png", "t")


def test_matplotlib_is_imported_late() -> None:
    code = "import sys, agent.report.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DATA.parents[1], check=False).returncode == 0
