"""What an answer's text holds beside text: thoughts, and calls of tools in the forms that common models write."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THINK, THOUGHT = "<think>", "</think>"
HERMES, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL = "[TOOL_CALLS]"
MISTRAL_ARGUMENTS = "[ARGS]"
LLAMA = "<|python_tag|>"
MARKS = (HERMES, MISTRAL, LLAMA)
MOST_CALLS = 64


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model wants called; ``arguments`` is JSON."""

    name: str
    arguments: str
    id: str

    @property
    def openai(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer that is certain: of its thoughts, or of what it says."""

    text: str
    thought: bool = False


class Parser:
    """Takes an answer's text apart as it comes. ``calls``: those that were found, once ``end`` was called.

    ``thinking``: the prompt has opened the thoughts already. ``tools``: whether calls are looked for.
    """

    def __init__(self, *, tools: bool, thinking: bool = False) -> None:
        self.calls: list[Call] = []
        self._tools = tools
        self._thinking = thinking
        self._begun = thinking
        self._held = ""
        self._calling = False
        self._trims = False

    def push(self, text: str) -> list[Piece]:
        """Pieces that are certain now."""
        self._held += text
        return self._pieces(last=False)

    def end(self) -> list[Piece]:
        """The rest; what looked like a call and is none is text after all."""
        pieces = self._pieces(last=True)
        if self._calling:
            self.calls = find_calls(self._held)
            if not self.calls and self._held:
                pieces.append(Piece(self._held))
            self._held = ""
        return pieces

    def _pieces(self, *, last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if not self._begun and not self._begin(last=last):
            return pieces
        self._trim()
        if self._thinking:
            thought, end, rest = self._held.partition(THOUGHT)
            kept = 0 if end or last else _overlap(thought, (THOUGHT,))
            piece = thought[: len(thought) - kept]
            if piece:
                pieces.append(Piece(piece, thought=True))
            self._held = rest if end else thought[len(thought) - kept :]
            if not end:
                return pieces
            self._thinking, self._trims = False, True
        self._trim()
        if self._calling:
            return pieces
        marks = MARKS if self._tools else ()
        found = [at for at in (self._held.find(mark) for mark in marks) if at >= 0]
        if found:
            self._calling = True
            text = self._held[: min(found)].rstrip()
            self._held = self._held[min(found) :]
        else:
            kept = 0 if last else _overlap(self._held, marks)
            text = self._held[: len(self._held) - kept]
            text = text.rstrip() if marks and not last else text  # blanks before a call are none of the text
            self._held = self._held[len(text) :]
        if text:
            pieces.append(Piece(text))
        return pieces

    def _trim(self) -> None:
        """Drops the ends of lines around thoughts."""
        if self._trims:
            self._held = self._held.lstrip("\n")
            self._trims = not self._held

    def _begin(self, *, last: bool) -> bool:
        """Whether the answer has said how it begins: with thoughts, with a bare call, or with text."""
        text = self._held.lstrip()
        if not last and (not text or (len(text) < len(THINK) and THINK.startswith(text))):
            return False
        self._begun = True
        if text.startswith(THINK):
            self._thinking = True
            self._held, self._trims = text[len(THINK) :], True
        elif self._tools and text.startswith("{"):  # Llama 3 writes its calls bare
            self._calling = True
        return True


def find_calls(text: str) -> list[Call]:
    """The calls in a text, in any of the forms; none where one of them cannot be read."""
    if HERMES in text:
        parts = [part.partition(HERMES_END)[0] for part in text.split(HERMES)[1:]]
        values = [_json(part) for part in parts]
    elif text.lstrip().startswith(MISTRAL):
        values = _mistral(text.lstrip())
    else:
        bare = text.strip().removeprefix(LLAMA).strip()
        whole = _json(bare)
        values = [whole] if whole is not None else [_json(part) for part in re.split(r"(?<=\})\s*;\s*(?=\{)", bare)]
    calls = [_call(value) for value in values[:MOST_CALLS]]
    return [call for call in calls if call is not None] if all(calls) else []


def function_tools(tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> list[dict[str, Any]]:
    """The functions among a request's tools, as templates take them; other kinds of tools are passed over.

    Raises ValueError for a choice that cannot be kept: a model cannot be made to call.
    """
    if choice not in (None, "auto", "none"):
        raise ValueError("a tool_choice other than 'auto' and 'none' is not supported")
    if choice == "none":
        return []
    found = []
    for tool in tools or ():
        function = tool.get("function", tool if "name" in tool else None)
        if tool.get("type", "function") == "function" and isinstance(function, Mapping):
            if not isinstance(function.get("name"), str):
                raise ValueError("a tool's function needs a name")
            parameters = (
                function.get("parameters") or function.get("input_schema") or {"type": "object", "properties": {}}
            )
            description = function.get("description") or ""
            own = {"name": function["name"], "description": description, "parameters": parameters}
            found.append({"type": "function", "function": own})
    return found


def with_arguments(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose earlier calls have their arguments as objects, as templates take them."""
    changed = []
    for message in messages:
        own = dict(message)
        if isinstance(own.get("tool_calls"), list):
            own["tool_calls"] = [_as_object(call) for call in own["tool_calls"]]
        if own.get("role") == "developer":
            own["role"] = "system"
        changed.append(own)
    return changed


def _as_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    value = _json(function["arguments"])
    return {**call, "function": {**function, "arguments": function["arguments"] if value is None else value}}


def _mistral(text: str) -> list[Any]:
    values: list[Any] = []
    for part in text.split(MISTRAL)[1:]:
        if MISTRAL_ARGUMENTS in part:
            name, _, arguments = part.partition(MISTRAL_ARGUMENTS)
            values.append({"name": name.strip(), "arguments": _json(arguments)})
        else:
            several = _json(part)
            values += several if isinstance(several, list) else [several]
    return values


def _call(value: Any) -> Call | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, Mapping):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False), f"call_{uuid.uuid4().hex[:24]}")


def _json(text: str) -> Any:
    try:
        return json.loads(text.strip())
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Characters of the text's end with which a mark may begin."""
    longest = max(map(len, marks), default=1) - 1
    return next((n for n in range(min(len(text), longest), 0, -1) if any(m.startswith(text[-n:]) for m in marks)), 0)
