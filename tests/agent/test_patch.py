from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent import patch
from agent.errors import PatchError
from agent.values import Edit

SOURCE = """\
import torch

LR = 0.04
MAX_LR = 0.04
STEPS = 045
WIDTH = 64


def f(x):
    y = x + 1
    return y


def g(x):
    y = x + 1
    return y * 2
"""


def edit(search: str | None, replace: str, path: str = "train.py") -> Edit:
    return Edit(path, search, replace)


def applied(source: str, *edits: Edit) -> str:
    return patch.apply({"train.py": source}, edits, ["train.py"])["train.py"]


def refused(source: str, *edits: Edit) -> str:
    with pytest.raises(PatchError) as caught:
        applied(source, *edits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "search", "replace", "result"),
    [
        ("a = 1\nb = 2\n", "a = 1", "a = 3", "a = 3\nb = 2\n"),
        ("MAX_LR = 0.04\nLR = 0.04\n", "LR = 0.04", "LR = 0.05", "MAX_LR = 0.04\nLR = 0.05\n"),
        ("LR = 0.045\nLR = 0.04\n", "LR = 0.04", "LR = 0.05", "LR = 0.045\nLR = 0.05\n"),
        ("if a == b:\n    a = b\n", "a = b", "a = c", "if a == b:\n    a = c\n"),
        # whole lines are deleted with their line end, parts of a line without
        ("a = 1\nb = 2\nc = 3\n", "b = 2", "", "a = 1\nc = 3\n"),
        ("a = 1\nb = 2\nc = 3\n", "b = 2\n", "", "a = 1\nc = 3\n"),
        ("if a:\n    b = 2\n    c = 3\n", "b = 2\n", "", "if a:\n    c = 3\n"),
        ("a = 1\nb = 2", "b = 2", "", "a = 1\n"),
        ("f(a, b)\n", ", b", "", "f(a)\n"),
        ("a = 1; b = 2\nc = 3\n", "; b = 2\n", "", "a = 1\nc = 3\n"),
        # a line end in SEARCH only does not join lines
        ("a = 1\nb = 2\n", "a = 1\n", "a = 3", "a = 3\nb = 2\n"),
        ("a = 1\nb = 2", "b = 2\n", "b = 3\n", "a = 1\nb = 3\n"),
        # line endings and blanks at line ends
        ("a = 1\r\nb = 2\r\nc = 3\r\n", "a = 1\nb = 2", "a = 3\nb = 4", "a = 3\r\nb = 4\r\nc = 3\r\n"),
        ("a = 1\nb = 2\n", "a = 1\r\nb = 2\r\n", "a = 3\r\nb = 4\r\n", "a = 3\nb = 4\n"),
        ("a = 1   \nb = 2\n", "a = 1\nb = 2", "a = 3\nb = 4", "a = 3\nb = 4\n"),
        ("a = 1\nb = 2\n", "a = 1  \nb = 2\t", "a = 3\nb = 4", "a = 3\nb = 4\n"),
        ("a = 1\n    \nb = 2\n", "a = 1\n\nb = 2\n", "a = 3\n", "a = 3\n"),
        # letter for letter goes before tolerance
        ("a = 1 \nb = 2\na = 1\nb = 2\n", "a = 1\nb = 2\n", "x = 0\n", "a = 1 \nb = 2\nx = 0\n"),
        ('"""Title\n=======\ntext"""\n', "Title\n=======\n", "Name\n=======\n", '"""Name\n=======\ntext"""\n'),
    ],
)
def test_one_edit(source: str, search: str, replace: str, result: str) -> None:
    assert applied(source, edit(search, replace)) == result


def test_all_edits_are_located_in_the_original() -> None:
    # The second SEARCH stands twice once the first edit is made, and the other way round.
    assert applied("a = 1\nb = 2\n", edit("a = 1", "b = 2"), edit("b = 2", "a = 1")) == "b = 2\na = 1\n"


def test_several_files() -> None:
    sources = {"train.py": "a = 1\n", "model.py": "b = 2\n", "fixed.py": "c = 3\n"}
    edits = [edit("a = 1", "a = 2"), edit("b = 2", "b = 3", "model.py"), edit(None, "d = 4\n", "new.py")]
    assert patch.apply(sources, edits, ["train.py", "model.py", "new.py"]) == {
        "train.py": "a = 2\n",
        "model.py": "b = 3\n",
        "fixed.py": "c = 3\n",
        "new.py": "d = 4\n",
    }
    assert sources["train.py"] == "a = 1\n"


def test_whole_file() -> None:
    assert applied("a = 1\r\nb = 2\r\n", edit(None, "c = 3\nd = 4")) == "c = 3\r\nd = 4\r\n"


def test_ambiguity_lists_the_lines() -> None:
    message = refused(SOURCE, edit("    y = x + 1\n", "    y = x + 2\n"))
    assert "occurs 2 times" in message
    assert "line 10 `y = x + 1`" in message
    assert "line 15" in message


def test_overlapping_occurrences_are_ambiguous() -> None:
    assert "occurs 2 times" in refused("a\nb\na\nb\na\n", edit("a\nb\na\n", "c\n"))
    assert "occurs 2 times" in refused("a\r\nb\r\na\r\nb\r\na\r\n", edit("a\nb\na\n", "c\n"))


def test_ambiguity_of_tolerant_places() -> None:
    assert "occurs 2 times" in refused("a = 1 \nb\na = 1\t\nb\n", edit("a = 1\nb", "c"))


@pytest.mark.parametrize(
    ("source", "search"),
    [
        ("MAX_LR = 0.04\n", "LR = 0.04"),
        ("LR = 0.045\n", "LR = 0.04"),
        ("LR = 0.04\n", "LR = 0"),
        ("LR = 1e-3\n", "LR = 1"),
        ("a == b\n", "a ="),
        ("a ** b\n", "a *"),
        ("MAX_LR = 0.04  \r\nb\r\n", "LR = 0.04\nb"),
    ],
)
def test_parts_of_tokens_do_not_match(source: str, search: str) -> None:
    message = refused(source, edit(search, "x"))
    assert "line 1" in message


def test_no_match_shows_the_nearest_lines() -> None:
    message = refused(SOURCE, edit("WIDTH = 46\n", "WIDTH = 128\n"))
    assert "no line `WIDTH = 46`" in message
    assert "line 6 `WIDTH = 64`" in message
    assert "indentation" in refused(SOURCE, edit("y = x + 1\nreturn y * 2\n", "pass\n"))


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([], "at least one edit"),
        ([edit("", "a = 1")], "SEARCH is empty"),
        ([edit("  \n ", "a = 1")], "SEARCH is empty"),
        ([edit("LR = 0.04", "LR = 0.04")], "same as SEARCH"),
        ([edit("STEPS = 045 \n", "STEPS = 045\n")], "differs from the file in nothing"),
        ([edit(None, SOURCE)], "same as the old one"),
        ([edit(None, " \n")], "empty"),
        ([edit("WIDTH = 64", "WIDTH = 1\n=======\n>>>>>>> REPLACE")], "marker `>>>>>>> REPLACE`"),
        ([edit("WIDTH = 64", "<<<<<<< HEAD\nWIDTH = 1")], "marker `<<<<<<< HEAD`"),
        ([edit("WIDTH = 64", "x", "prepare.py")], "may not be edited"),
        ([edit("WIDTH = 64", "x", "gone.py")], "no such file yet"),
        ([edit("WIDTH = 64\n", "x\n"), edit("STEPS = 045\nWIDTH = 64\n", "y\n")], "overlaps edit 2 of 2"),
        ([edit("WIDTH = 64", "x"), edit("WIDTH = 64", "y")], "overlaps"),
        ([edit("WIDTH = 64", "x"), edit(None, "y")], "whole-file"),
    ],
)
def test_refusals(edits: list[Edit], words: str) -> None:
    with pytest.raises(PatchError) as caught:
        patch.apply({"train.py": SOURCE, "prepare.py": "x\n"}, edits, ["train.py", "gone.py"])
    assert words in str(caught.value)


def test_edits_that_cancel_out_are_refused() -> None:
    assert "leave every file as it was" in refused("f(b c)\n", edit("f(b ", "f("), edit("c)", "b c)"))


def test_a_failed_set_changes_nothing() -> None:
    sources = {"train.py": SOURCE}
    with pytest.raises(PatchError):
        patch.apply(sources, [edit("WIDTH = 64", "WIDTH = 1"), edit("nowhere", "x")], ["train.py"])
    assert sources == {"train.py": SOURCE}


LINES = st.lists(
    st.sampled_from(["a = 1", "b = a", "    c(a, b)", "", "=======", "d = '<<<<<<<'", "x" * 30]), max_size=12
)


@given(st.data(), st.sampled_from(["\n", "\r\n"]))
def test_random_edits_equal_direct_construction(data: st.DataObject, newline: str) -> None:
    """Numbered lines, so that every SEARCH is unique; each block of lines is kept or replaced."""
    count = data.draw(st.integers(2, 25))
    numbered = [f"line_{number}_ = {data.draw(st.integers(0, 9))}" for number in range(count)]
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=6)) | {0, count})
    edits, result = [], []
    for start, end in pairwise(cuts):
        block = numbered[start:end]
        if data.draw(st.booleans()):
            new = data.draw(LINES)
            edits.append(edit("\n".join(block) + "\n", "".join(f"{line}\n" for line in new)))
            block = new
        result += block
    if edits:
        data.draw(st.randoms(use_true_random=False)).shuffle(edits)
        expected = "".join(line + newline for line in result)
        assert applied("".join(line + newline for line in numbered), *edits) == expected


TEXT = st.text(alphabet="ab1.= \n", max_size=40)


@example("1 ", "1\n")
@given(TEXT, st.text(alphabet="ab1.= \n", min_size=1, max_size=6))
def test_never_applies_where_it_is_ambiguous(source: str, search: str) -> None:
    """Whatever is applied stood at one place only, letter for letter or but for blanks at line ends."""
    try:
        result = applied(source, edit(search, "NEW"))
    except PatchError:
        return
    assert result.count("NEW") == 1
    start = result.index("NEW")
    tail = result[start + 3 :]
    assert source.startswith(result[:start])
    gone = source[start : len(source) - len(tail)]
    bare = [line.rstrip() for line in search.split("\n")]
    ends = ([line.rstrip() for line in text.split("\n")][: len(bare)] for text in (gone, gone + "\n"))
    assert gone == search or bare in ends


@given(TEXT, TEXT)
def test_diff_is_what_git_applies(old: str, new: str) -> None:
    text = patch.diff({"train.py": old}, {"train.py": new})
    assert (text == "") == (old == new)
    assert all(line[:1] in {"-", "+", " ", "@", "\\"} for line in text.split("\n")[:-1])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a.py": "x\ny\nz\n"}, {"a.py": "x\nY\nz\n"}),
        ({"a.py": "x\r\ny\r\n"}, {"a.py": "x\r\nY\r\n"}),
        ({"a.py": "x\ny"}, {"a.py": "x\ny\n"}),
        ({"a.py": "x\ny\n", "b.py": "1\n"}, {"a.py": "x", "b.py": "2\n", "c.py": "new\n"}),
        ({"a.py": "x\x0cy\u2028z\n1\n"}, {"a.py": "x\x0cy\u2028z\n2\n"}),
    ],
)
def test_git_applies_the_diff(tmp_path: Path, old: dict[str, str], new: dict[str, str]) -> None:
    for path, text in old.items():
        (tmp_path / path).write_bytes(text.encode())
    (tmp_path / "p.patch").write_bytes(patch.diff(old, new).encode())
    subprocess.run(["git", "apply", "--whitespace=nowarn", "p.patch"], cwd=tmp_path, check=True)
    assert {path: (tmp_path / path).read_bytes().decode() for path in new} == new
