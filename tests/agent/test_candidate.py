from dataclasses import replace

import pytest

from agent.candidate import Tried, build, digest_of, repeat_of
from agent.config import Task
from agent.errors import DuplicateError, PatchError
from agent.values import Edit, Proposal

SOURCES = {"train.py": "LR = 0.1\n"}
TASK = Task(profile="claimed")
IDEA = Proposal((Edit("train.py", "LR = 0.1", "LR = 0.2"),), "twice the rate")
SAID = "trial 3 ended as discard"


def tried(proposal: Proposal) -> Tried:
    digest = digest_of({"train.py": "LR = 0.2\n"} if proposal.edits else SOURCES)
    return Tried({repeat_of(digest, proposal): SAID})


@pytest.mark.parametrize("where", [{}, {"budget": "5steps"}, {"seed": 7}, {"budget": "5steps", "seed": 7}])
def test_the_same_code_in_the_same_place_is_a_repeat_and_elsewhere_it_is_not(where: dict[str, str | int]) -> None:
    here = replace(IDEA, **where)
    with pytest.raises(DuplicateError, match=f"tried before: {SAID}"):
        build(here, SOURCES, "a" * 40, TASK, tried(here))
    for other in ({"budget": "9steps"}, {"seed": 9}, {"budget": "5steps", "seed": 9}):
        elsewhere = replace(here, **other)
        assert build(elsewhere, SOURCES, "a" * 40, TASK, tried(here)).sources == {"train.py": "LR = 0.2\n"}


def test_the_incumbent_may_be_measured_elsewhere_but_not_proposed() -> None:
    unchanged = replace(IDEA, edits=())
    with pytest.raises(PatchError, match="at least one edit"):
        build(unchanged, SOURCES, "a" * 40, TASK, Tried())
    for where in ({"budget": "5steps"}, {"seed": 7}):
        found = build(replace(unchanged, **where), SOURCES, "a" * 40, TASK, Tried())
        assert (found.sources, found.diff, found.digest) == (SOURCES, "", digest_of(SOURCES))
    screen = replace(unchanged, budget="5steps")
    with pytest.raises(DuplicateError, match="tried before"):
        build(screen, SOURCES, "a" * 40, TASK, tried(screen))
