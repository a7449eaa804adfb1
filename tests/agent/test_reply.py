from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import patch, reply
from agent.errors import ReplyError
from agent.values import CATEGORIES, Edit

HEAD = "description: wider\nhypothesis: more room\ncategory: architecture\n\n"
BLOCK = "<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n"
CALL: dict[str, Any] = {
    "description": "wider",
    "hypothesis": "more room",
    "category": "architecture",
    "edits": [{"path": "train.py", "search": "a = 1", "replace": "a = 2"}],
}
ONE = (Edit("train.py", "a = 1", "a = 2"),)


def refused(text: str, sources: dict[str, str] | None = None, truncated: bool = False) -> str:
    with pytest.raises(ReplyError) as caught:
        reply.parse_text(text, sources, truncated=truncated)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + BLOCK,
        HEAD + "train.py\n" + BLOCK,
        HEAD + "`train.py`:\n```python\n" + BLOCK + "```\n",
        HEAD + "```\ntrain.py\n" + BLOCK + "```\nThat is all.",
        HEAD + "### ./train.py\n\n" + BLOCK,
        (HEAD + BLOCK).replace("\n", "\r\n"),
        "Some thoughts first.\n\n**Description:** wider\n- Hypothesis: more\n  room\nCategory: Architecture\n" + BLOCK,
        BLOCK + "\n" + HEAD,
    ],
)
def test_text_with_one_block(text: str) -> None:
    assert reply.parse_text(text) == reply.ParsedReply(ONE, "wider", "more room", "architecture")


def test_several_blocks_and_files() -> None:
    sources = {"train.py": "", "model.py": ""}
    text = HEAD + "model.py\n" + BLOCK + "\n" + BLOCK + "\ntrain.py\n" + BLOCK.replace("a = 2", "")
    paths = [(one.path, one.replace) for one in reply.parse_text(text, sources).edits]
    assert paths == [("model.py", "a = 2"), ("model.py", "a = 2"), ("train.py", "")]
    assert "which file" in refused(HEAD + BLOCK, sources)


def test_deletion() -> None:
    text = HEAD + "<<<<<<< SEARCH\na = 1\n=======\n>>>>>>> REPLACE\n"
    assert reply.parse_text(text).edits == (Edit("train.py", "a = 1", ""),)


SOURCE = 'x = 0\n"""Title\n=======\ntext"""\na = 1\n'


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ('"""Title\n=======\ntext"""\n=======\n"""Name\n=======\ntext"""', 'x = 0\n"""Name\n=======\ntext"""\na = 1\n'),
        ('"""Title\n=======\ntext"""\n=======\n"""Name"""', 'x = 0\n"""Name"""\na = 1\n'),
        ('a = 1\n=======\n"""Big\n=======\n"""', 'x = 0\n"""Title\n=======\ntext"""\n"""Big\n=======\n"""\n'),
        ("x = 0\n=======\n", '"""Title\n=======\ntext"""\na = 1\n'),
    ],
)
def test_dividers_inside_code(body: str, result: str) -> None:
    sources = {"train.py": SOURCE}
    edits = reply.parse_text(f"{HEAD}<<<<<<< SEARCH\n{body}\n>>>>>>> REPLACE\n", sources).edits
    assert patch.apply(sources, edits, ["train.py"])["train.py"].replace("\n\n", "\n").lstrip() == result.lstrip()


WHOLE = 'LR = 1\n\n\ndef build_model(config):\n    """Fences: ``` are fine."""\n    return None\n'


def test_whole_file() -> None:
    code = WHOLE.replace("``` ", "")
    text = f"{HEAD}Here it is:\n\n```python\n{code}```\n"
    assert reply.parse_text(text).edits == (Edit("train.py", None, code),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n\n", "empty"),
        ("I would make the model wider, since it is too narrow.", "expected edits, found 53 characters"),
        (BLOCK, "description"),
        ("description:\n" + BLOCK, "description"),
        (HEAD + BLOCK.replace(">>>>>>> REPLACE\n", ""), "no end"),
        (HEAD + BLOCK + "<<<<<<< SEARCH\na", "no end"),
        (HEAD + BLOCK.replace(">>>>>>> REPLACE\n", "") + BLOCK, "no `>>>>>>> REPLACE`"),
        (HEAD + BLOCK.replace("=======\n", ""), "no line `=======`"),
        (HEAD + ">>>>>>> REPLACE\n" + BLOCK, "has no SEARCH"),
        (HEAD + BLOCK.replace("a = 2", "# ... rest of the code unchanged"), "leaves code out"),
        (HEAD + "```python\nx = 1\n```\n", "expected edits"),
        (HEAD + "```python\ndef build_model(config):\n    return (\n```\n", "is no Python"),
        (HEAD + "```python\ndef build_model(config):\n    pass\n", "expected edits"),
        (HEAD + 2 * "```python\ndef build_model(config):\n    pass\n```\n", "expected edits"),
    ],
)
def test_refused_text(text: str, words: str) -> None:
    assert words in refused(text)


def test_cut_off_at_the_length_limit() -> None:
    assert "cut off" in refused(HEAD + BLOCK, truncated=True)
    with pytest.raises(ReplyError, match="cut off"):
        reply.parse_tool_call(json.dumps(CALL)[:50], truncated=True)


def test_tool_call() -> None:
    expected = reply.ParsedReply(ONE, "wider", "more room", "architecture")
    assert reply.parse_tool_call(CALL) == expected
    assert reply.parse_tool_call(json.dumps(CALL)) == expected
    assert reply.parse_tool_call(CALL | {"edits": json.dumps(CALL["edits"])}) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"description": "wid', "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[1]", "a list"),
        (CALL | {"edits": []}, "an empty list"),
        (CALL | {"edits": None}, "nothing"),
        (CALL | {"edits": "nothing"}, "expected JSON"),
        (CALL | {"edits": ["a = 1"]}, "a str"),
        (CALL | {"edits": [{"path": "train.py", "search": "a"}]}, "`replace`"),
        (CALL | {"edits": [{"path": "train.py", "search": None, "replace": ""}]}, "`search`"),
        (CALL | {"description": " \n"}, "description"),
        (CALL | {"description": 3}, "description"),
    ],
)
def test_refused_tool_calls(arguments: Any, words: str) -> None:
    with pytest.raises(ReplyError) as caught:
        reply.parse_tool_call(arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given_text", "cleaned"),
    [
        ("one\ttwo\nthree", "one two three"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07end\x00", "red end"),
        ("a\u202eb\u200bc\ud800d", "a b c d"),
        ("  µP, ReLU² and λ  ", "µP, ReLU² and λ"),
    ],
)
def test_descriptions_are_cleaned(given_text: str, cleaned: str) -> None:
    assert reply.parse_tool_call(CALL | {"description": given_text}).description == cleaned


def test_descriptions_are_capped() -> None:
    long = reply.parse_tool_call(CALL | {"description": "word " * 100}).description
    assert len(long) <= 200
    assert long.endswith("…")


@pytest.mark.parametrize("category", [*CATEGORIES, "Optimizer", "`loss`"])
def test_known_categories(category: str) -> None:
    assert reply.parse_tool_call(CALL | {"category": category}).category == category.lower().strip("`")


@pytest.mark.parametrize("category", ["magic", "", None, 7])
def test_unknown_categories(category: Any) -> None:
    assert reply.parse_tool_call(CALL | {"category": category}).category == "other"


def test_the_tool_schema_names_what_is_parsed() -> None:
    parameters = reply.TOOL["parameters"]
    assert set(parameters["required"]) == set(CALL)
    assert set(parameters["properties"]) == set(CALL) | {"insights"}
    assert set(parameters["properties"]["edits"]["items"]["required"]) == {"path", "search", "replace"}


def test_insights_keep_their_lines_and_are_bounded() -> None:
    notes = "- width beats depth\n- \x1b[31mwarmup does nothing"
    assert reply.parse_tool_call(CALL | {"insights": notes}).insights == "- width beats depth\n- warmup does nothing"
    long = reply.parse_tool_call(CALL | {"insights": "word " * 9_999}).insights
    assert len(long) <= reply.INSIGHTS_LIMIT
    assert long.endswith("[cut: more than 4000 characters]")
    assert reply.parse_tool_call(CALL).insights == ""
    assert reply.parse_tool_call(CALL | {"insights": "None."}).insights == ""
    assert reply.parse_tool_call(CALL | {"insights": ["a", "list"]}).insights == ""


def test_insights_in_text_end_at_an_empty_line() -> None:
    block = "train.py\n<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n"
    parsed = reply.parse_text(f"description: two\nlines\ninsights: - one\n- two\n\nnot this\n\n{block}")
    assert parsed.insights == "- one\n- two"
    assert parsed.description == "two lines"


def test_the_text_format_is_parsed() -> None:
    parsed = reply.parse_text(reply.TEXT_FORMAT)
    assert parsed.edits[0].path == "train.py"
    assert parsed.description


@given(st.text(alphabet="<=> SEARCHREPLACE\n`.py:description", max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = reply.parse_text(text)
    except ReplyError:
        return
    assert parsed.edits
    assert parsed.description
