"""Which constants a candidate turns and which way, and that the same turn on the same code is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.candidate import Tried, build
from agent.config import Task
from agent.errors import DuplicateError
from agent.turns import told, turned
from agent.values import Edit, Proposal

SOURCE = """\
LR, WIDTH = 0.1, 4
DEPTH = 4  # range: 2|4|8
BETAS = (0.9, 0.95)
NAME = "muon"
if DEVICE.type != "cuda":
    DEPTH = 2


def f(x):
    return x + DEPTH
"""


def turn(*changes: tuple[str, str], device: str = "cpu") -> str:
    after = SOURCE
    for old, new in changes:
        assert after.count(old) == 1
        after = after.replace(old, new)
    found = turned({"train.py": SOURCE}, {"train.py": after}, device)
    return "-" if found is None else told(found)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([("    DEPTH = 2", "    DEPTH = 3")], "DEPTH up"),
        ([("    DEPTH = 2", "    DEPTH = 1"), ('"muon"', '"adamw"')], 'DEPTH down and NAME "adamw"'),
        ([("(0.9, 0.95)", "(0.8, 0.95)  # less")], "BETAS (0.8, 0.95)"),
        ([("    DEPTH = 2", "    DEPTH = 3"), ("x + DEPTH", "x - DEPTH")], "-"),
        ([("NAME", "TITLE")], "-"),
        ([("DEPTH = 4 ", "DEPTH = 8 ")], "-"),  # not the one that counts here
        ([("return x + DEPTH", "return DEPTH +")], "-"),
        ([("# range: 2|4|8", "# range: 2|4")], "-"),  # words only: nothing is turned
    ],
)
def test_a_turn(changes: list[tuple[str, str]], found: str) -> None:
    assert turn(*changes) == found


def test_sources_that_cannot_be_compared_line_by_line_turn_nothing() -> None:
    odd = SOURCE.replace("\n", "\r")
    assert turned({"train.py": odd}, {"train.py": odd.replace("0.1", "0.2")}, "cpu") is None
    huge = SOURCE.replace("    DEPTH = 2", "    DEPTH = 0x" + "f" * 5000)
    assert turned({"train.py": SOURCE}, {"train.py": huge}, "cpu") is None


def test_what_counts_depends_on_the_device() -> None:
    assert turn(("DEPTH = 4 ", "DEPTH = 8 "), device="cuda") == "DEPTH up"
    assert turn(("    DEPTH = 2", "    DEPTH = 3"), device="cuda") == "-"


def test_the_same_turn_on_the_same_code_is_refused_with_what_came_of_it() -> None:
    sources, task = {"train.py": SOURCE}, Task(profile="claimed")
    found = turned(sources, {"train.py": SOURCE.replace("    DEPTH = 2", "    DEPTH = 9")}, "cpu")
    assert found is not None
    tried = Tried(turns={("a" * 40, found): "trial 3 ended as discard with val_bpb 1.5"})
    again = Proposal((Edit("train.py", "    DEPTH = 2", "    DEPTH = 5"),), "deeper", proposer="llm")
    with pytest.raises(DuplicateError, match=r"DEPTH up was tried on this very code: trial 3 .* val_bpb 1\.5"):
        build(again, sources, "a" * 40, task, tried)
    assert build(again, sources, "b" * 40, task, tried).digest, "the incumbent is another one"
    searched = replace(again, proposer="knobs")
    assert build(searched, sources, "a" * 40, task, tried).digest, "how far is for a search to say"
    other = replace(again, edits=(Edit("train.py", "    DEPTH = 2", "    DEPTH = 1"),))
    assert build(other, sources, "a" * 40, task, tried).digest
