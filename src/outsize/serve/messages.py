"""``/v1/messages``: Anthropic's form."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from outsize.serve.backend import Backend, Listening
from outsize.serve.bodies import MessagesBody
from outsize.serve.problems import Problem
from outsize.serve.streams import sse
from outsize.serve.talks import Ask, Talk

STOP = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


def ask_of(body: MessagesBody) -> Ask:
    """The conversation of a body. Raises Problem."""
    messages = [own for message in body.messages for own in _messages(message)]
    if body.system:
        text = body.system if isinstance(body.system, str) else "".join(_text(part) for part in body.system)
        messages.insert(0, {"role": "system", "content": text})
    choice = (body.tool_choice or {}).get("type")
    tools = [{**tool, "type": "function"} for tool in body.tools or () if tool.get("type", "custom") == "custom"]
    stops = tuple(body.stop_sequences or ())
    return Ask(body, messages, max(body.max_tokens, 1), tools, choice, stops)


class Answer:
    """One request's answer."""

    def __init__(self, backend: Backend, body: MessagesBody, talk: Talk) -> None:
        self._backend, self._talk = backend, talk
        self._id = f"msg_{uuid.uuid4().hex}"
        self._stops = tuple(body.stop_sequences or ())

    def whole(self, listening: Listening) -> dict[str, Any]:
        """All at once."""
        said = self._talk.said[0]
        content: list[dict[str, Any]] = []
        if said.thoughts:
            content.append({"type": "thinking", "thinking": said.thoughts, "signature": ""})
        if said.text or not said.calls:
            content.append({"type": "text", "text": said.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            for call in said.calls
        ]
        return {**self._head(listening), "content": content, **self._end(listening)}

    async def pieces(self, listening: Listening) -> AsyncIterator[str]:
        """In server-sent events."""
        message = {**self._head(listening), "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=message)
        place, kind = -1, ""
        async for step in self._talk.steps(listening):
            if step is None:
                yield _event("ping")
                continue
            for piece in step.pieces:
                wanted = "thinking" if piece.thought else "text"
                if wanted != kind:
                    if kind:
                        yield _event("content_block_stop", index=place)
                    place, kind = place + 1, wanted
                    block = {"type": kind, kind: ""}
                    if piece.thought:
                        block["signature"] = ""
                    yield _event("content_block_start", index=place, content_block=block)
                delta = {"type": f"{kind}_delta", kind: piece.text}
                yield _event("content_block_delta", index=place, delta=delta)
        if kind:
            yield _event("content_block_stop", index=place)
        for call in self._talk.said[0].calls:
            place += 1
            used = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield _event("content_block_start", index=place, content_block=used)
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            yield _event("content_block_delta", index=place, delta=delta)
            yield _event("content_block_stop", index=place)
        end = self._end(listening)
        usage = {"output_tokens": listening.usage["completion_tokens"]}
        yield _event("message_delta", delta=end, usage=usage)
        yield _event("message_stop")

    def _head(self, listening: Listening) -> dict[str, Any]:
        usage = listening.usage
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counted = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        }
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._backend.name, "usage": counted}

    def _end(self, listening: Listening) -> dict[str, Any]:
        ended = listening.replies[0].ended
        reason = STOP[self._talk.said[0].finish]
        if ended is not None and ended.finish == "stop" and self._stops and reason == "end_turn":
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stops[0] if len(self._stops) == 1 else None}
        return {"stop_reason": reason, "stop_sequence": None}


def _event(kind: str, **more: Any) -> str:
    return sse({"type": kind, **more}, kind)


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message as templates take it: results of tools become messages of their own, before the rest."""
    content = message.get("content")
    if not isinstance(content, list):
        return [dict(message)]
    own: list[dict[str, Any]] = []
    text, calls = "", []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "tool_result":
            inner = part.get("content") or ""
            own.append(
                {
                    "role": "tool",
                    "tool_call_id": part.get("tool_use_id"),
                    "content": inner if isinstance(inner, str) else "".join(map(_text, inner)),
                }
            )
        elif kind == "tool_use":
            function = {"name": part.get("name"), "arguments": part.get("input") or {}}
            calls.append({"id": part.get("id"), "type": "function", "function": function})
        elif kind != "thinking":
            text += _text(part)
    if text or calls or not own:
        own.append({"role": message.get("role"), "content": text, **({"tool_calls": calls} if calls else {})})
    return own


def _text(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise Problem(400, f"content of the type {kind!r} is not supported: text alone")
