from __future__ import annotations

import json
import re
import string
from pathlib import Path

import libcst
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libcst.metadata import MetadataWrapper, PositionProvider

from agent import facts, patch, preflight, reply
from agent.errors import UsageError
from agent.preflight import PROFILES, RULES

ROOT = Path(__file__).parents[2]
TRAIN = (ROOT / "train.py").read_text(encoding="utf-8")
EDITS = Path(__file__).parent / "edits"
GOOD, BAD = sorted((EDITS / "good").glob("*.json")), sorted((EDITS / "bad").glob("*.json"))

MINI = (Path(__file__).parent / "mini_train.py").read_text(encoding="utf-8")


def rules_broken(source: str, parent: str = MINI, **settings: str) -> list[str]:
    return [finding.rule for finding in preflight.check(source, parent, **settings)]


def in_loop(code: str) -> str:
    return MINI.replace("        # here\n", "".join(f"        {line}\n" for line in code.split("\n")))


def at_top(code: str) -> str:
    return MINI.replace("DEPTH = 4\n", f"DEPTH = 4\n{code}\n")


def candidate(file: Path) -> tuple[str, str | None]:
    """train.py after the edits in a file, and the rule they shall break."""
    call = json.loads(file.read_text(encoding="utf-8"))
    rule = call.pop("rule", None)
    return patch.apply({"train.py": TRAIN}, reply.parse_tool_call(call).edits, ["train.py"])["train.py"], rule


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_good_edits_of_train_pass(file: Path) -> None:
    source, rule = candidate(file)
    assert rule is None
    assert preflight.check(source, TRAIN) == ()


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad_edits_of_train_break_their_rule(file: Path) -> None:
    source, rule = candidate(file)
    findings = preflight.check(source, TRAIN)
    assert {finding.rule for finding in findings} == {rule}
    assert all(RULES[finding.rule] in finding.message for finding in findings)


def test_there_are_twenty_of_each_and_one_for_every_rule() -> None:
    assert len(GOOD) >= 20
    assert len(BAD) >= 20
    assert sorted(json.loads(file.read_text(encoding="utf-8"))["rule"] for file in BAD) == sorted(RULES)
    assert {json.loads(file.read_text(encoding="utf-8"))["category"] for file in GOOD} == set(reply.CATEGORIES)


def test_train_and_mini_keep_the_contract() -> None:
    assert rules_broken(TRAIN, "") == []
    assert rules_broken(MINI, "") == []


def test_only_what_is_new_counts() -> None:
    parent = in_loop("trace = open('a.txt')")
    moved = parent.replace("DEPTH = 4\n", "DEPTH = 8\nWIDTH = 3\n").replace("open('a.txt')", "open(\n'a.txt')")
    assert rules_broken(parent) == ["file"]
    assert rules_broken(moved, parent) == []
    twice = parent.replace("        trace =", "        other = open('a.txt')\n        trace =")
    assert [(one.rule, one.line) for one in preflight.check(twice, parent)] == [("file", 49)]
    assert rules_broken(parent.replace("a.txt", "b.txt"), parent) == []


def test_profiles_and_extra_imports() -> None:
    script = "import os, sys\nprint('---')\nos.remove('x')\n"
    assert rules_broken(script, "", profile="claimed") == []
    assert rules_broken("x = (\n", script, profile="claimed") == ["syntax"]
    assert rules_broken("lr: 0.2\n- x", "lr: 0.1\n- y", profile="claimed") == []
    assert preflight.check(at_top("import triton"), MINI, imports=["triton"]) == ()
    with pytest.raises(UsageError, match="train, claimed"):
        preflight.check(MINI, MINI, "strict")


def test_findings_have_lines_and_advice() -> None:
    (finding,) = preflight.check(in_loop("x = 1\nopen('secret.txt')"), MINI)
    line = in_loop("x = 1\nopen('secret.txt')").split("\n").index("        open('secret.txt')") + 1
    assert (finding.rule, finding.line) == ("file", line)
    assert finding.message == f"`open`: {RULES['file']}"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_documented(rule: str) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule)
    assert RULES[rule].endswith(".")
    assert all(rule in PROFILES["train"] for rule in PROFILES["claimed"])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a = 1e-3\n", "a = 0.001  # small\n", True),
        ("a = 1_000\n", "a = (\n    1000\n)\n", True),
        ("a = 'x'\n", 'a = u"x"\n', True),
        ("def f():\n    '''Doc.'''\n    return 1\n", "def f(): return 1\n", True),
        ("a = 1\r\nb = 2\r\n", "a = 1\nb = 2\n", True),
        ("a = 1\n", "a = 1.0\n", False),
        ("a = 1\n", "a = True\n", False),
        ("a = 0.1\n", "a = 0.10000000000000002\n", False),
        ("f(a, b)\n", "f(b, a)\n", False),
        ("x = [1]\n", "x = (1,)\n", False),
        ("lr: 0.1  \n", "lr: 0.1\n -", False),
        ("- 1: a  \n", "- 1: a\n", True),
    ],
)
def test_digest(one: str, other: str, same: bool) -> None:
    assert (preflight.digest(one) == preflight.digest(other)) is same
    assert re.fullmatch("[0-9a-f]{64}", preflight.digest(one))


def test_lines_are_those_of_libcst() -> None:
    """Counted on the way, they agree with libcst's own positions, over files with every kind of layout."""
    compared = 0
    for file in (ROOT / "train.py", ROOT / "prepare.py", Path(string.__file__), Path(json.__file__), Path(re.__file__)):
        module = libcst.parse_module(file.read_text(encoding="utf-8"))
        positions = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
        found = facts.Facts()
        found.gather(module)
        for place in (*found.calls, *found.reads, *found.strings, *found.body):
            if not getattr(place.node, "lpar", ()) and not getattr(place.node, "decorators", ()):
                assert place.line == positions[place.node].start.line
                compared += 1
    assert compared > 2000


def test_statements_are_put_together_again() -> None:
    source = "# a\n\nx = 1; y = 2\n@d\ndef f():\n    return open('x')\n\n\n# c\nz = [\n    open,\n]\n# end\n"
    findings = preflight.check(source, "", "train")
    assert [(one.rule, one.line) for one in findings if one.rule == "file"] == [("file", 6), ("file", 11)]


@given(st.text(alphabet="ab(): \n=.'\"\\\t\r\x00\ud800@#é", max_size=60))
def test_any_text_is_checked(text: str) -> None:
    assert all(finding.line >= 1 for finding in preflight.check(text, MINI))
    assert preflight.digest(text)


@pytest.mark.parametrize("shape", ["f({})", "[{}]", "-{}", "{}.a", "{}[0]", "(lambda: {})", "{} + 1", "not {}"])
@pytest.mark.parametrize("depth", [30, 1000])
def test_deep_nesting_never_overflows(shape: str, depth: int) -> None:
    text = "x"
    for _ in range(depth):
        text = shape.replace("{}", text)
    found = rules_broken(in_loop(f"y = {text}"))
    assert found == (["syntax"] if depth > 100 else [])
