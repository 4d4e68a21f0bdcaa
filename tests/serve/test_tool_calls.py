from __future__ import annotations

import json
from typing import Any

import pytest

from outsize.serve.tool_calls import Parser, find_calls, function_tools, with_arguments

ONE = ("weather", {"city": "Graz"})
TWO = [ONE, ("time", {})]
FIRST = '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Graz\\"}"}</tool_call>'
TIME = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
FORMS = [
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Graz"}}\n</tool_call>', [ONE]),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Graz"}}', [ONE]),
    (FIRST + "\n" + TIME, TWO),
    ('{"name": "weather", "parameters": {"city": "Graz"}}', [ONE]),
    ('<|python_tag|>{"name": "weather", "parameters": {"city": "Graz"}}; {"name": "time", "parameters": {}}', TWO),
    ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Graz"}}, {"name": "time", "arguments": {}}]', TWO),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Graz"}[TOOL_CALLS]time[ARGS]{}', TWO),
    ("<tool_call>nothing</tool_call>", []),
    ('{"name": 7}', []),
    ("[TOOL_CALLS] 7", []),
    ("{" * 5000, []),
]


def parsed(text: str, size: int, **options: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """What is said, what is thought and the calls of a text that comes in pieces."""
    parser = Parser(**{"tools": True, **options})
    pieces = [piece for at in range(0, len(text), size) for piece in parser.push(text[at : at + size])]
    pieces += parser.end()
    said = "".join(piece.text for piece in pieces if not piece.thought)
    thought = "".join(piece.text for piece in pieces if piece.thought)
    return said, thought, [(call.name, json.loads(call.arguments)) for call in parser.calls]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("text", "calls"), FORMS, ids=range(len(FORMS)))
def test_calls_are_found_in_every_form(text: str, calls: Any, size: int) -> None:
    said, thought, found = parsed(text, size)
    assert found == calls
    assert said == ("" if calls else text)
    assert thought == ""


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_what_is_said_before_a_call_is_said(size: int) -> None:
    text = "Let me see. " + TIME
    assert parsed(text, size) == ("Let me see.", "", [("time", {})])
    assert parsed(text, size, tools=False) == (text, "", [])


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(("before", "thinking"), [("<think>", False), ("\n<think>\n", False), ("", True)])
def test_thoughts_are_split_off(before: str, thinking: bool, size: int) -> None:
    text = before + "so <that>\nis it</think>\n\nIt is 4 < 5."
    assert parsed(text, size, thinking=thinking) == ("It is 4 < 5.", "so <that>\nis it", [])
    assert parsed(before + "unfinished</thi", size, thinking=thinking)[1] == "unfinished</thi"


def test_text_that_only_looks_like_a_mark_is_text() -> None:
    for text in ("<tool", "a <tool_cal", "<thin", "[TOOL", "a < b"):
        assert parsed(text, 1) == (text, "", [])


def test_each_call_has_its_own_id() -> None:
    ids = {call.id for call in find_calls(FORMS[5][0])}
    assert len(ids) == 2
    assert all(one.startswith("call_") for one in ids)


def test_other_kinds_of_tools_are_passed_over() -> None:
    tools = [
        {"type": "web_search"},
        {"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}},
        {"type": "function", "name": "b", "description": "B", "input_schema": {"type": "object"}},
    ]
    found = function_tools(tools, "auto")
    assert [tool["function"]["name"] for tool in found] == ["a", "b"]
    assert function_tools(tools, "none") == []
    with pytest.raises(ValueError, match="tool_choice"):
        function_tools(tools, {"type": "function", "function": {"name": "a"}})
    with pytest.raises(ValueError, match="name"):
        function_tools([{"type": "function", "function": {}}], None)


def test_earlier_calls_have_their_arguments_as_objects() -> None:
    call = {"type": "function", "function": {"name": "a", "arguments": '{"b": 1}'}}
    messages = [{"role": "developer", "content": "x"}, {"role": "assistant", "tool_calls": [call, 7]}]
    first, second = with_arguments(messages)
    assert first["role"] == "system"
    assert second["tool_calls"][0]["function"]["arguments"] == {"b": 1}
    assert second["tool_calls"][1] == 7
