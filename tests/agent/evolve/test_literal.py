from pathlib import Path

import pytest

from agent import patch, preflight
from agent.proposers.evolve import literal
from agent.proposers.evolve.genome import Policy

TRAIN = (Path(__file__).parents[3] / "train.py").read_text()
LAW = {"update_multiplier": {"poles": (0.5, 1.0), "step_fraction": -8.0, "bias": 4.0}}
POLICY = Policy.of({"beta2": None, "clip": "update_rms", "control": LAW})


def test_the_real_script_takes_a_policy_and_keeps_its_contract() -> None:
    assert literal.read(TRAIN) == Policy()
    (edit,) = literal.edits("train.py", TRAIN, POLICY)
    edited = patch.apply({"train.py": TRAIN}, [edit], ["train.py"])["train.py"]
    assert literal.read(edited) == POLICY
    assert preflight.check(edited, TRAIN, "train") == ()
    assert literal.without(edited) == TRAIN
    assert literal.edits("train.py", edited, POLICY) == ()


def test_whatever_else_stands_on_the_line_stays() -> None:
    source = 'A = 1\nMATRIX_POLICY = {"ns_steps": 3,\n  "clip": "none"}  # fields\nB = 2\n'
    assert literal.read(source) == Policy.of({"ns_steps": 3})
    assert literal.rebound(source, Policy()) == "A = 1\nMATRIX_POLICY = {}  # fields\nB = 2\n"


def test_a_text_that_looks_like_it_is_not_edited() -> None:
    source = 'NOTE = "MATRIX_POLICY = {}"\nMATRIX_POLICY = {}\n'
    edits = literal.edits("train.py", source, POLICY)
    edited = patch.apply({"train.py": source}, edits, ["train.py"])["train.py"]
    assert edited.startswith('NOTE = "MATRIX_POLICY = {}"\nMATRIX_POLICY = {"beta2": None, ')
    assert literal.read(edited) == POLICY


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("A = 1\n", "found none"),
        ("MATRIX_POLICY = {}\nMATRIX_POLICY = {}\n", "found 2"),
        ("MATRIX_POLICY = dict()\n", "plain literal"),
        ("MATRIX_POLICY = None\n", "expected a dict"),
        ("MATRIX_POLICY = {'ns_steps': 99}\n", "ns_steps"),
        ("MATRIX_POLICY = {\n", "expected Python"),
    ],
)
def test_what_cannot_be_read_says_why(source: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        literal.read(source)
