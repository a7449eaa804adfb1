import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import patch
from agent.constants import Choices, Constant, Interval, Value, find, render, rewrite
from agent.values import Edit

TRAIN = (Path(__file__).parents[2] / "train.py").read_text()

SOURCE = '''"""A script. LR = 0.04"""
import os

NOISE = 3  # stands before the block

# ---- constants: edit these ----
DEVICE = os.environ
DEPTH = 8  # range: 2..16
LR = 0.04  # é, then range: 0.01..0.1 log; more words
BIG = 2**19
WIDE: int = 64
MAX_LR = 0.04
PATTERN = "a#b"  # range: L|SL
BETAS = (0.8, 0.95)  # range: (0.8, 0.95)|(0.9, 0.99)
DROPOUT = 0.0
FAST = True
MADE = len("abc")
GROWN = 1
GROWN += 1
NOT_A_KNOB = 7  # range: fixed
TABLE = {"a": 1}
lower = 5
if DEVICE.type != "cuda":  # the same for small machines
    DEPTH = 4  # range: 1..8
    LR = 0.04  # range: 0.01..0.1 log
    MADE = 5
if lower:
    FAST = False


def main():
    LR = 1.0


AFTER = 9
'''


def by_name(source: str, device: str) -> dict[str, Constant]:
    return {constant.name: constant for constant in find(source, device)}


def edited(source: str, pairs: tuple[tuple[str, str], ...]) -> str:
    edits = [Edit("train.py", search, replace) for search, replace in pairs]
    return patch.apply({"train.py": source}, edits, ["train.py"])["train.py"]


def test_which_literals_are_live() -> None:
    cpu, cuda = by_name(SOURCE, "cpu"), by_name(SOURCE, "cuda")
    assert [cpu["DEPTH"].value, cuda["DEPTH"].value] == [4, 8]
    assert [cpu["LR"].line, cuda["LR"].line] == [25, 9]
    assert "MADE" in cpu
    assert "MADE" not in cuda
    assert not {"NOISE", "GROWN", "FAST", "TABLE", "lower", "AFTER", "DEVICE"} & set(cpu)
    assert cpu["WIDE"].value == 64
    assert cpu["BIG"].value == 524288


@pytest.mark.parametrize(
    ("test", "live"),
    [
        ('X.type == "cuda"', {"cuda": 1, "cpu": 2, "mps": 2}),
        ('X.type != "cuda"', {"cuda": 2, "cpu": 1, "mps": 1}),
        ('X.type in ("cpu", "mps")', {"cuda": 2, "cpu": 1, "mps": 1}),
        ('X.type not in ("cpu",)', {"cuda": 1, "cpu": 2, "mps": 1}),
    ],
)
def test_conditions(test: str, live: dict[str, int]) -> None:
    source = f"A = 0\nif {test}:\n    A = 1\nelse:\n    A = 2\n"
    assert {device: by_name(source, device)["A"].value for device in live} == live


@pytest.mark.parametrize("test", ["X.type", "f()", 'X.kind == "cuda"', 'X.type < "cuda"', "1 < 2 < 3"])
def test_undecidable_conditions_take_the_name_off(test: str) -> None:
    assert by_name(f"A = 0\nB = 1\nif {test}:\n    A = 1\n", "cpu").keys() == {"B"}


def test_stated_ranges() -> None:
    found = by_name(SOURCE, "cuda")
    assert found["DEPTH"].range == Interval(2, 16, whole=True)
    assert found["LR"].range == Interval(0.01, 0.1, log=True)
    assert found["PATTERN"].range == Choices(("L", "SL", "a#b"))
    assert found["BETAS"].range == Choices(((0.8, 0.95), (0.9, 0.99)))
    assert found["NOT_A_KNOB"].range is None
    assert found["LR"].stated
    assert not found["WIDE"].stated


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A = 4  # range: 1..3", Interval(1, 4, whole=True)),  # widened to hold the present value
        ("A = 48  # range: 128|64|32", Choices((32, 48, 64, 128))),
        ("A = 1.0  # range: 0|1|2", Choices((0.0, 1.0, 2.0))),
        ("A = None  # range: None|0.5", Choices((None, 0.5))),
        ("A = 0.5  # range: 3..1", None),
        ("A = 0.5  # range: 0..1 log", None),
        ("A = 0.5  # range: nan..1", None),
        ("A = 5  # range: two|three", None),
        ("A = 5  # range: oops", None),
        ("A = 5  # range:", None),
        ("A = 0.3  # arrange: 1..2", Interval(0.075, 1.2, log=True)),
    ],
)
def test_ranges_as_stated(line: str, expected: object) -> None:
    assert find(line, "cpu")[0].range == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FLAG = True", Choices((False, True))),
        ("LR = 0.04", Interval(0.01, 0.16, log=True)),
        ("WARMUP_RATIO = 0.0", Interval(0.0, 1.0)),
        ("ADAM_BETA2 = 0.95", Interval(0.8, 0.9875)),
        ("MUON_MOMENTUM = 0.6", Interval(0.0, 0.9)),
        ("SIZE = 64", Choices((16, 32, 64, 128, 256))),
        ("DEPTH = 8", Interval(4, 16, whole=True)),
        ("ODD = 1", Interval(1, 2, whole=True)),
        ("ZERO = 0", None),
        ("NOUGHT = 0.0", None),
        ("MINUS = -1.5", None),
        ('NAME = "x"', None),
        ("BETAS = (0.8, 0.95)", None),
    ],
)
def test_derived_ranges(line: str, expected: object) -> None:
    (constant,) = find(line, "cpu")
    assert constant.range == expected
    assert not constant.stated


@pytest.mark.parametrize(
    "line", ["A = {1: 2}", "A = {1}", "A = [1]", "A = b'x'", "A = 1e999", "A = 1j", "A = ...", "A = B = 1"]
)
def test_what_is_no_plain_literal(line: str) -> None:
    assert find(line, "cpu") == ()


def test_rewriting_changes_the_live_literal_only() -> None:
    values: dict[str, Value] = {"LR": 0.0512345, "BIG": 2**18, "WIDE": 64, "BETAS": (0.9, 0.99), "PATTERN": "SL"}
    for device in ("cpu", "cuda"):
        after = edited(SOURCE, rewrite(SOURCE, device, values))
        expected = {name: constant.value for name, constant in by_name(SOURCE, device).items()} | values
        expected["LR"] = 0.05123
        assert {name: constant.value for name, constant in by_name(after, device).items()} == expected
        changed = [pair for pair in zip(SOURCE.split("\n"), after.split("\n"), strict=True) if pair[0] != pair[1]]
        assert len(changed) == 4
        other = "cuda" if device == "cpu" else "cpu"
        assert by_name(after, other)["LR"].value == 0.04
    assert "é, then range: 0.01..0.1 log; more words" in after


def test_several_literals_on_one_line_and_no_change() -> None:
    source = "é = 1; A = 1; B = 2\nC = 3\n"
    assert edited(source, rewrite(source, "cpu", {"B": 20, "A": 10, "C": 30})) == "é = 1; A = 10; B = 20\nC = 30\n"
    assert rewrite(source, "cpu", {"A": 1}) == ()
    with pytest.raises(KeyError):
        rewrite(source, "cpu", {"NEW": 1})


def test_equal_lines_are_told_apart_by_their_neighbours() -> None:
    source = 'A = 1\nif D.type != "cuda":\n    B = 2\n    A = 1\n'
    for device, line in (("cpu", 3), ("cuda", 0)):
        ((search, _),) = pairs = rewrite(source, device, {"A": 5})
        assert source.count(search) == 1
        assert "A = 5" in edited(source, pairs).split("\n")[line]


def test_crlf_stays() -> None:
    source = "A = 1  # range: 1..9\r\nB = 2\r\n"
    assert find(source, "cpu")[0].range == Interval(1, 9, whole=True)
    assert edited(source, rewrite(source, "cpu", {"A": 3})) == source.replace("A = 1", "A = 3")


scalars = (
    st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
)


@given(scalars | st.tuples(scalars, scalars) | st.none())
def test_rendered_values_read_back(value: Value) -> None:
    again = ast.literal_eval(render(value))
    assert type(again) is type(value)
    assert again == (pytest.approx(value, rel=5.1e-4) if isinstance(value, float) else again)
    assert render(again) == render(value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_real_training_script(device: str) -> None:
    """Every knob of train.py, moved to both ends of its range at once, comes back as written."""
    found = find(TRAIN, device)
    assert {"DEPTH", "MATRIX_LR", "TOTAL_BATCH_SIZE"} <= {constant.name for constant in found}
    for end in (0, -1):
        values: dict[str, Value] = {}
        for constant in found:
            match constant.range:
                case Choices(choices):
                    values[constant.name] = choices[end]
                case Interval(low, high):
                    value = (low, high)[end]
                    values[constant.name] = int(value) if isinstance(constant.value, int) else value
        after = edited(TRAIN, rewrite(TRAIN, device, values))
        assert {constant.name: constant.value for constant in find(after, device) if constant.range} == values


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_real_script_s_knobs_say_their_ranges(device: str) -> None:
    """None is one by accident: a literal above the first definition counts as one, unless its range is fixed."""
    assert [constant.name for constant in find(TRAIN, device) if constant.range and not constant.stated] == []
    assert sum(constant.range is not None for constant in find(TRAIN, device)) == {"cpu": 20, "cuda": 21}[device]
