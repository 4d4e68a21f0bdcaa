"""``/v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from outsize.engine.answer import Likely, Token
from outsize.serve.backend import Backend, Listening
from outsize.serve.bodies import ChatBody
from outsize.serve.streams import DONE, PING, sse
from outsize.serve.talks import Ask, Said, Step, Talk


def ask_of(body: ChatBody) -> Ask:
    """The conversation of a body."""
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return Ask(
        body,
        body.messages,
        most or None,
        body.tools,
        body.tool_choice,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        form=body.response_format,
        variables=body.chat_template_kwargs,
    )


class Chat:
    """One request's answer in OpenAI's form."""

    def __init__(self, backend: Backend, body: ChatBody, talk: Talk) -> None:
        self._backend, self._body, self._talk = backend, body, talk
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, listening: Listening) -> dict[str, Any]:
        """All at once."""
        choices = [
            {
                "index": number,
                "message": _message(said),
                "logprobs": self._logprobs(reply.tokens) if self._body.logprobs else None,
                "finish_reason": said.finish,
            }
            for number, (said, reply) in enumerate(zip(self._talk.said, listening.replies, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": listening.usage}

    async def pieces(self, listening: Listening) -> AsyncIterator[str]:
        """In server-sent events."""
        for number in range(len(self._talk.wishes)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        async for step in self._talk.steps(listening):
            if step is None:
                yield PING
                continue
            for piece in self._step(step):
                yield piece
        if self._body.wants_usage:
            yield sse({**self._head("chat.completion.chunk"), "choices": [], "usage": listening.usage})
        yield DONE

    def _step(self, step: Step) -> list[str]:
        number = step.number
        logprobs = self._logprobs([step.token]) if self._body.logprobs and step.token else None
        deltas = [{"reasoning_content" if piece.thought else "content": piece.text} for piece in step.pieces]
        if logprobs and not deltas:
            deltas = [{"content": ""}]
        chunks = [self._chunk(number, delta, logprobs if not i else None) for i, delta in enumerate(deltas)]
        if step.ended:
            said = self._talk.said[number]
            for place, call in enumerate(said.calls):
                chunks.append(self._chunk(number, {"tool_calls": [{"index": place, **call.openai}]}))
            chunks.append(self._chunk(number, {}, finish=said.finish))
        return chunks

    def _chunk(self, number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> str:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._backend.name}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        likely = [token.likely for token in tokens if token.likely is not None]
        return {"content": [self._likely(one) for one in likely], "refusal": None}

    def _likely(self, likely: Likely) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in likely.top]
        return {**self._token(likely.token, likely.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._backend.piece(token)
        return {"token": text, "logprob": max(logprob, -1e9), "bytes": list(text.encode())}


def _message(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.thoughts:
        message["reasoning_content"] = said.thoughts
    if said.calls:
        message["content"] = said.text or None
        message["tool_calls"] = [call.openai for call in said.calls]
    return message
