"""What the three routes for conversations share: messages in; thoughts, text and calls of tools out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outsize.engine.answer import Ended, Event, Token, Wish
from outsize.serve.backend import Backend, Listening
from outsize.serve.bodies import OpenAI, ResponseFormat, Sampled
from outsize.serve.problems import Problem
from outsize.serve.tool_calls import THINK, Call, Parser, Piece, function_tools


@dataclass(frozen=True, slots=True)
class Ask:
    """A conversation to be answered, of any route."""

    body: Sampled
    messages: Sequence[Mapping[str, Any]]
    new_tokens: int | None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    form: ResponseFormat | None = None
    variables: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Said:
    """What one answer has come to."""

    text: str = ""
    thoughts: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something new of one answer: pieces that are certain, the token they came with, and the end."""

    number: int
    pieces: Sequence[Piece]
    token: Token | None = None
    ended: Ended | None = None


class Talk:
    """A request for answers to a conversation."""

    def __init__(self, wishes: Sequence[Wish], *, tools: bool, thinking: bool) -> None:
        self.wishes = wishes
        self.said = [Said() for _ in wishes]
        self._parsers = [Parser(tools=tools, thinking=thinking) for _ in wishes]

    @classmethod
    async def of(cls, backend: Backend, ask: Ask) -> Talk:
        """The talk for a request: its template has made tokens of it. Raises Problem."""
        try:
            tools = function_tools(ask.tools, ask.tool_choice)
        except ValueError as error:
            raise Problem(400, str(error), param="tools") from error
        prompt, last = await backend.chat(ask.messages, tools, ask.variables)
        if not prompt:
            raise Problem(400, "the chat template makes nothing of these messages", param="messages")
        request = backend.request(ask.body, prompt, ask.new_tokens)
        if ask.stops:
            request = backend.with_stops(request, ask.stops)
        processor = None
        if ask.form is not None and ask.form.type != "text":
            schema = ask.form.json_schema or {}
            processor = await backend.json_form(schema.get("schema") if ask.form.type == "json_schema" else None)
        copies = (ask.body.n or 1) if isinstance(ask.body, OpenAI) else 1
        wishes = [
            Wish(
                backend.reseeded(request, copy),
                logprobs=ask.logprobs,
                keep_special=bool(tools),
                processor=processor,
            )
            for copy in range(copies)
        ]
        return cls(wishes, tools=bool(tools), thinking=last.rstrip().endswith(THINK))

    async def steps(self, listening: Listening) -> AsyncIterator[Step | None]:
        """What is new, as it comes; None after a silence."""
        async for one in listening.events():
            yield None if one is None else self._step(*one)

    async def all(self, listening: Listening) -> None:
        """Until all answers are at their end."""
        async for _ in self.steps(listening):
            pass

    def _step(self, number: int, event: Event) -> Step:
        parser, said = self._parsers[number], self.said[number]
        pieces: list[Piece] = []
        token = event if isinstance(event, Token) else None
        ended = event if isinstance(event, Ended) else None
        if token or ended:
            pieces = parser.push(event.text)  # type: ignore[union-attr]
        if ended:
            pieces += parser.end()
            said.calls = parser.calls
            said.finish = "tool_calls" if said.calls else "length" if ended.finish == "length" else "stop"
        for piece in pieces:
            if piece.thought:
                said.thoughts += piece.text
            else:
                said.text += piece.text
        return Step(number, pieces, token, ended)
