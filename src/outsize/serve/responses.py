"""``/v1/responses``: OpenAI's newer form. Text alone; nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Any

from outsize.serve.backend import Backend, Listening
from outsize.serve.bodies import ResponseFormat, ResponsesBody
from outsize.serve.problems import Problem
from outsize.serve.streams import PING, sse
from outsize.serve.talks import Ask, Said, Talk


def ask_of(body: ResponsesBody) -> Ask:
    """The conversation of a body. Raises Problem."""
    if body.previous_response_id:
        raise Problem(400, "nothing is stored here; send the whole conversation", param="previous_response_id")
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages = [_message(item) for item in given]
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    form = None
    if body.text is not None and body.text.format is not None:
        kind = body.text.format.get("type")
        if kind not in ("text", "json_object", "json_schema"):
            raise Problem(400, "a text.format must be text, json_object or json_schema", param="text")
        form = ResponseFormat(type=kind, json_schema=body.text.format)
    return Ask(body, messages, body.max_output_tokens or None, body.tools, body.tool_choice, form=form)


class Response:
    """One request's answer."""

    def __init__(self, backend: Backend, body: ResponsesBody, talk: Talk) -> None:
        self._backend, self._body, self._talk = backend, body, talk
        self._id = f"resp_{uuid.uuid4().hex}"
        self._item = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, listening: Listening) -> dict[str, Any]:
        """All at once."""
        said = self._talk.said[0]
        status = "incomplete" if said.finish == "length" else "completed"
        output = [self._message(said.text, "completed")] if said.text or not said.calls else []
        for call in said.calls:
            own = {"id": f"fc_{call.id[5:]}", "call_id": call.id, "name": call.name, "arguments": call.arguments}
            output.append({"type": "function_call", "status": "completed", **own})
        if said.thoughts:
            summary = [{"type": "summary_text", "text": said.thoughts}]
            output.insert(0, {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": summary})
        usage = listening.usage
        counted = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return {**self._head(status), "output": output, "usage": counted}

    async def pieces(self, listening: Listening) -> AsyncIterator[str]:
        """In server-sent events."""
        number = count()
        said = Said()
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        where = {"item_id": self._item, "output_index": 0, "content_index": 0}

        def event(kind: str, **more: Any) -> str:
            return sse({"type": kind, "sequence_number": next(number), **more}, kind)

        yield event("response.created", response=self._head("in_progress"))
        yield event("response.in_progress", response=self._head("in_progress"))
        item = {**self._message("", "in_progress"), "content": []}
        yield event("response.output_item.added", output_index=0, item=item)
        yield event("response.content_part.added", **where, part=part)
        async for step in self._talk.steps(listening):
            if step is None:
                yield PING
                continue
            for piece in step.pieces:
                if not piece.thought:
                    yield event("response.output_text.delta", **where, delta=piece.text, logprobs=[])
        said = self._talk.said[0]
        whole = self.whole(listening)
        if not said.text and said.calls:  # the message was begun already
            whole["output"].insert(0, self._message("", "completed"))
        yield event("response.output_text.done", **where, text=said.text, logprobs=[])
        yield event("response.content_part.done", **where, part={**part, "text": said.text})
        yield event("response.output_item.done", output_index=0, item=self._message(said.text, "completed"))
        calls = [item for item in whole["output"] if item["type"] == "function_call"]
        for place, call in enumerate(calls, start=1):
            own = {"item_id": call["id"], "output_index": place}
            begun = {**call, "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=place, item=begun)
            yield event("response.function_call_arguments.delta", **own, delta=call["arguments"])
            yield event("response.function_call_arguments.done", **own, arguments=call["arguments"], name=call["name"])
            yield event("response.output_item.done", output_index=place, item=call)
        yield event(f"response.{whole['status']}", response=whole)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": [part]}

    def _head(self, status: str) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._backend.name,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature or 0.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
        }


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message of an item of the input. Raises Problem for items that are no text."""
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output")}
    if kind != "message":
        raise Problem(400, f"input of the type {kind!r} is not supported", param="input")
    return {"role": item.get("role"), "content": item.get("content")}
