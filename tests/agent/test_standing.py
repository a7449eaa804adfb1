"""Which of two sources is simpler."""

from __future__ import annotations

import pytest

from agent.standing import nodes

PLAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "same",
    [
        PLAIN + "\n\n# a comment\n",
        'def f(x):\n    """What it does."""\n    return (x\n            + 1)\n',
        '"""A module."""\n' + PLAIN,
    ],
)
def test_words_and_layout_are_not_what_makes_code_complex(same: str) -> None:
    assert nodes(same) == nodes(PLAIN)


def test_more_code_is_more_nodes_and_what_is_no_python_has_none() -> None:
    assert nodes(PLAIN) < nodes(PLAIN + "f(1)\n") < nodes(PLAIN + "f(1)\nf(f(1))\n")
    assert nodes("def f(:") == nodes("\0") == 0
