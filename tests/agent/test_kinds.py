from pathlib import Path

import pytest

from agent.kinds import Kind, changed, kind_of

TRAIN = (Path(__file__).parents[2] / "train.py").read_text()


def kind(old: str, new: str, category: str = "other") -> Kind:
    assert TRAIN.count(old) == 1, old
    return kind_of({"train.py": TRAIN}, {"train.py": TRAIN.replace(old, new)}, category, "cpu")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("    SOFTCAP = 15.0", "    SOFTCAP = 20.0", Kind(code=False, pace=False)),
        ("    DEPTH = 2 ", "    DEPTH = 3 ", Kind(code=False, pace=False)),
        ("    MATRIX_LR = 0.04", "    MATRIX_LR = 0.02", Kind(code=False, pace=True)),
        ("    TOTAL_BATCH_SIZE = 4096", "    TOTAL_BATCH_SIZE = 8192", Kind(code=False, pace=True)),
        ("    WARMDOWN_RATIO = 0.6", "    WARMDOWN_RATIO = 0.9", Kind(code=False, pace=True)),
        ("    WEIGHT_DECAY = 0.1", "    WEIGHT_DECAY = 0.0", Kind(code=False, pace=True)),
        ("(1.0 - progress) / WARMDOWN_RATIO", "(1.01 - progress) / WARMDOWN_RATIO", Kind(code=True, pace=True)),
        ("first + (last - first) * share", "first + (last - first) * share**2", Kind(code=True, pace=True)),
    ],
)
def test_what_train_py_has_is_told_apart(old: str, new: str, found: Kind) -> None:
    assert kind(old, new) == found


def test_code_is_of_pace_by_what_it_changes_or_by_what_it_is_called() -> None:
    old = {"a.py": "class GPT:\n    def forward(self, x):\n        return x\n\ndef main():\n    pass\n"}
    new = {"a.py": old["a.py"].replace("return x", "return 2 * x")}
    assert changed(old, new) == {"GPT.forward"}
    assert kind_of(old, new, "architecture", "cpu") == Kind(code=True, pace=False)
    assert kind_of(old, new, "schedule", "cpu") == Kind(code=True, pace=True)
    assert changed(old, {"a.py": "no python ("}) == {"GPT.forward", "main"}


def test_who_learns_from_whom() -> None:
    steady, paced = Kind(code=False, pace=False), Kind(code=False, pace=True)
    assert steady.learns_from(paced)
    assert not paced.learns_from(steady)
    assert not steady.learns_from(Kind(code=True, pace=False))
