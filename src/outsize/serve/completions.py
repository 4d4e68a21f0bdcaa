"""``/v1/completions``: text after text, and how likely either is."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from outsize.engine.answer import Ended, Likely, Scored, Token, Wish
from outsize.serve.backend import Backend, Listening, Reply
from outsize.serve.bodies import MOST_PROMPTS, CompletionBody
from outsize.serve.problems import Problem
from outsize.serve.streams import DONE, PING, sse

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "": "stop"}


class Completion:
    """One request: its wishes, and its answer in OpenAI's form."""

    def __init__(
        self, backend: Backend, body: CompletionBody, prompts: Sequence[tuple[int, ...]], echoed: Sequence[str]
    ):
        if body.suffix:
            raise Problem(400, "suffix is not supported", param="suffix")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise Problem(400, "best_of is not supported; leave it out, or set it to n", param="best_of")
        self._backend, self._body, self._prompts, self._echoed = backend, body, prompts, echoed
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._copies = body.n or 1
        new_tokens = 16 if body.max_tokens is None else body.max_tokens
        score = bool(body.echo and body.logprobs is not None)
        if not new_tokens and not body.echo:
            raise Problem(400, "max_tokens must be at least 1 without echo", param="max_tokens")
        self.wishes = []
        if len(prompts) * self._copies > MOST_PROMPTS:
            raise Problem(400, f"too many choices; need at most {MOST_PROMPTS}, have {len(prompts) * self._copies}")
        for prompt in prompts:
            request = backend.request(body, prompt, new_tokens if new_tokens or score else 1)
            for copy in range(self._copies):
                mine = request if not copy else backend.reseeded(request, copy)
                self.wishes.append(Wish(mine, logprobs=body.logprobs, score_prompt=score))

    @classmethod
    async def of(cls, backend: Backend, body: CompletionBody) -> Completion:
        """The completion for a body, whose prompts become tokens. Raises Problem."""
        given: list[Any] = [body.prompt] if _is_one(body.prompt) else list(body.prompt)
        prompts = [await backend.encode(p) if isinstance(p, str) else tuple(p) for p in given]
        if not all(prompts):
            raise Problem(400, "a prompt is empty; need one token at least", param="prompt")
        echoed = []
        for text, prompt in zip(given, prompts, strict=True) if body.echo else ():
            echoed.append(text if isinstance(text, str) else await backend.decode_plain(prompt))
        return cls(backend, body, prompts, echoed)

    def whole(self, listening: Listening, replies: Sequence[Reply]) -> dict[str, Any]:
        """All at once."""
        choices = [self._choice(number, reply) for number, reply in enumerate(replies)]
        return {**self._head(), "choices": choices, "usage": listening.usage}

    async def pieces(self, listening: Listening) -> AsyncIterator[str]:
        """In server-sent events."""
        offsets = [0] * len(self.wishes)
        for number in range(len(self.wishes) if self._body.echo and self._body.logprobs is None else 0):
            yield self._chunk(number, self._echo(number), None, None)
        async for one in listening.events():
            if one is None:
                yield PING
                continue
            number, event = one
            if isinstance(event, Scored):
                logprobs = self._logprobs(self._prompt_likely(number, event), 0)
                offsets[number] = len(self._echo(number))
                yield self._chunk(number, self._echo(number), logprobs, None)
            elif isinstance(event, Token) and self._generates:
                likely = [event.likely] if event.likely else None
                each = self._logprobs(likely, offsets[number]) if likely else None
                offsets[number] += len(event.text)
                if event.text or each:
                    yield self._chunk(number, event.text, each, None)
            elif isinstance(event, Ended):
                yield self._chunk(number, event.text if self._generates else "", None, FINISH[event.finish])
        if self._body.wants_usage:
            yield sse({**self._head(), "choices": [], "usage": listening.usage})
        yield DONE

    @property
    def _generates(self) -> bool:
        return self._body.max_tokens != 0

    def _echo(self, number: int) -> str:
        return self._echoed[number // self._copies] if self._body.echo else ""

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        assert reply.ended is not None
        likely: list[Likely | None] = []
        if reply.scored is not None:
            likely += self._prompt_likely(number, reply.scored)
        if self._generates:
            likely += [token.likely for token in reply.tokens]
        return {
            "index": number,
            "text": self._echo(number) + (reply.text if self._generates else ""),
            "logprobs": None if self._body.logprobs is None else self._logprobs(likely, 0),
            "finish_reason": FINISH[reply.ended.finish] if self._generates else "length",
        }

    def _prompt_likely(self, number: int, scored: Scored) -> list[Likely | None]:
        """The prompt's tokens; nothing says how likely the first one is."""
        first = self._prompts[number // self._copies][0]
        return [Likely(first, float("nan")), *scored.tokens]

    def _logprobs(self, likely: Sequence[Likely | None] | None, offset: int) -> dict[str, Any]:
        tokens, logprobs, tops, offsets = [], [], [], []
        for one in likely or ():
            if one is None:
                continue
            text = self._backend.piece(one.token)
            first = one.logprob != one.logprob  # no number: there is none
            tokens.append(text)
            logprobs.append(None if first else one.logprob)
            # The likeliest first: where two tokens are written alike, the likelier counts.
            top = {self._backend.piece(token): logprob for token, logprob in reversed(one.top)}
            tops.append(
                None if first or not self._body.logprobs else {**top, text: max(one.logprob, top.get(text, -1e9))}
            )
            offsets.append(offset)
            offset += len(text)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _chunk(self, number: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> str:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head(), "choices": [choice]})

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._backend.name}


def _is_one(prompt: Any) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], int)
