"""The reader of tool calls: the ways that templates teach, in any pieces, and text that only looks like a call."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmray.serve.tool_calls import Call, ToolCallReader

NAMES = ("add", "look_up", "a.b-c")


def read(*pieces: str) -> tuple[str, list[Call]]:
    """Text and calls of an answer that comes in these pieces."""
    reader = ToolCallReader(NAMES)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.flush()
    return "".join(part for part in parts if isinstance(part, str)), [part for part in parts if isinstance(part, Call)]


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


ADD = Call("add", '{"a": 1, "b": 2}')
LOOK = Call("look_up", '{"q": "</tool_call> {\\"x\\"}"}')


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>', "", [ADD]),
        ('\n\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}', "", [ADD]),  # the end tag never came
        (
            'Let me see.\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>\n'
            '<tool_call>{"name": "look_up", "arguments": {"q": "</tool_call> {\\"x\\"}"}}</tool_call>\nSo.',
            "Let me see.\nSo.",
            [ADD, LOOK],
        ),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": 2}}]', "", [ADD]),
        ('[TOOL_CALLS]add{"a": 1, "b": 2}[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}', "", [ADD, ADD]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}', "", [ADD]),
        ('{"name": "add", "parameters": {"a": 1, "b": 2}}; {"name": "a.b-c"}', "", [ADD, Call("a.b-c", "{}")]),
        ('[{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}]', "", [ADD]),
        # text that only looks like a call
        ('{"name": "rm", "arguments": {}}', '{"name": "rm", "arguments": {}}', []),
        ('<tool_call>{"name": "rm"}</tool_call>', '<tool_call>{"name": "rm"}</tool_call>', []),
        ('{"setup": "why", "punchline": "so"}', '{"setup": "why", "punchline": "so"}', []),
        ('{"name": "add", "arguments": {"a": 1', '{"name": "add", "arguments": {"a": 1', []),
        ('{"name": "add", "arguments": NaN}', '{"name": "add", "arguments": NaN}', []),
        ("a <tool_call> is a mark; [TOOL_CALLS] too", "a <tool_call> is a mark; [TOOL_CALLS] too", []),
        ("1 < 2 [TOOL", "1 < 2 [TOOL", []),
        ("  ", "  ", []),
        ("[" * 5000, "[" * 5000, []),
        ('<tool_call>{"a":' + "[" * 5000, '<tool_call>{"a":' + "[" * 5000, []),
    ],
)
def test_calls_and_text(text: str, said: str, calls: list[Call]) -> None:
    assert read(text) == (said, calls)
    assert read(*text) == (said, calls)


def test_a_call_is_given_as_soon_as_it_is_whole_and_text_at_once() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push("Hello <") == ["Hello "]
    assert reader.push("b>") == ["<b>"]
    assert reader.push('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}') == [ADD]
    reader = ToolCallReader(NAMES)
    assert reader.push('{"na') == []
    assert reader.push("ture") == ['{"nature']


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=5), VALUES, max_size=3)), min_size=1
)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def written(calls: list[tuple[str, dict[str, Any]]], way: str, ascii_only: bool) -> str:
    """Calls as a model writes them."""

    def dumps(value: Any) -> str:
        return json.dumps(value, ensure_ascii=ascii_only)

    plain = [{"name": name, "arguments": arguments} for name, arguments in calls]
    match way:
        case "hermes":
            return "\n".join(f"<tool_call>\n{dumps(call)}\n</tool_call>" for call in plain)
        case "mistral":
            return f"[TOOL_CALLS]{dumps(plain)}"
        case "mistral-names":
            return "".join(f"[TOOL_CALLS]{name}{dumps(arguments)}" for name, arguments in calls)
        case _:
            return dumps(plain)


@given(CALLS, st.sampled_from(["hermes", "mistral", "mistral-names", "bare"]), st.booleans(), CUTS)
def test_what_is_written_is_read_in_any_pieces(
    calls: list[tuple[str, dict[str, Any]]], way: str, ascii_only: bool, places: list[int]
) -> None:
    said, read_calls = read(*cut(written(calls, way, ascii_only), places))
    assert said == ""
    assert [(call.name, json.loads(call.arguments)) for call in read_calls] == calls


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    '{"name": "add", "arguments": {}}',
    '{"name": "rm"}',
    '{"name"',
    "add{",
    "}",
    "[",
    "]",
    ";",
    "\n",
    " ",
    "text",
    "<tool",
    '"',
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join), CUTS)
def test_any_text_is_read_the_same_in_any_pieces(text: str, places: list[int]) -> None:
    assert read(*cut(text, places)) == read(text)


@given(st.text(max_size=40), CUTS)
def test_text_without_calls_is_left_as_it_is(text: str, places: list[int]) -> None:
    assert read(*cut(text, places)) == (text, [])
