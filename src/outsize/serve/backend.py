"""The engine's service, as coroutines see it: texts into wishes, and events out of its thread."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from outsize.engine.answer import Ended, Event, Failed, Scored, Token, Wish
from outsize.engine.chat_template import as_messages, chat_tokens
from outsize.engine.generation import end_tokens
from outsize.engine.loader import Opening
from outsize.engine.request import GenerateRequest
from outsize.engine.service import Service, Ticket
from outsize.errors import DamagedModel, OutsizeError, UsageError
from outsize.models.files.tokenizer_limits import tokenizer_errors
from outsize.serve.bodies import OpenAI, Sampled
from outsize.serve.grammar import Grammars
from outsize.serve.problems import Problem, problem_of
from outsize.serve.tool_calls import with_arguments

PING_S = 2.0  # of silence, after which a stream says that it is alive
Result = TypeVar("Result")


@dataclass(slots=True)
class Reply:
    """What has come of one sequence so far."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    scored: Scored | None = None
    ended: Ended | None = None


class Listening:
    """Events of some sequences that were asked for together. Leaving it ends what is left of them."""

    def __init__(
        self, service: Service, wishes: Sequence[Wish], client: str, on_end: Callable[[Listening], None]
    ) -> None:
        self.count = len(wishes)
        self.prompt_tokens = sum({wish.request.prompt: len(wish.request.prompt) for wish in wishes}.values())
        self._service, self._on_end = service, on_end
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._ended = 0
        self.replies = [Reply() for _ in wishes]
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self.moments: list[float] = []  # of tokens
        self._loop = loop

        def tell(number: int, event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        try:
            self.ticket: Ticket = service.submit(wishes, tell, client)
        except OutsizeError as error:
            raise problem_of(error) from error

    @property
    def headers(self) -> dict[str, str]:
        """What is known before anything is computed."""
        return {"X-Predicted-Seconds": f"{self.ticket.predicted_s:.3f}"}

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far, as OpenAI counts them."""
        new = sum(r.ended.new_tokens if r.ended else len(r.tokens) for r in self.replies)
        cached = max((r.ended.cached_tokens for r in self.replies if r.ended), default=0)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """Each sequence's events until all are at their end; None after two seconds of silence.

        Raises Problem where one fails.
        """
        try:
            while self._ended < self.count:
                try:
                    number, event = await asyncio.wait_for(self._events.get(), PING_S)
                except TimeoutError:
                    yield None
                    continue
                self._note(self.replies[number], event)
                yield number, event
        finally:
            self._service.cancel(self.ticket)
            self._on_end(self)

    async def all(self) -> list[Reply]:
        """All of them, at their end. Raises Problem where one fails."""
        async for _ in self.events():
            pass
        return self.replies

    def _note(self, reply: Reply, event: Event) -> None:
        match event:
            case Token():
                reply.tokens.append(event)
                reply.text += event.text
                self.moments.append(self._loop.time())
            case Scored():
                reply.scored = event
            case Ended():
                reply.ended = event
                reply.text += event.text
                self._ended += 1
            case Failed():
                raise Problem(500, event.error, code="failed")


class Backend:
    """One model behind a server. ``name``: what clients call it. ``defaults``: sampling where a request says nothing.

    Tokenizing and templates have a thread and a tokenizer of their own: neither clients nor the engine wait for them.
    """

    def __init__(
        self, service: Service, tokenizer: Any, opening: Opening, name: str, defaults: Mapping[str, Any]
    ) -> None:
        self.service, self.tokenizer, self.opening, self.name = service, tokenizer, opening, name
        self.context = opening.plan.request.context
        self.listening: set[Listening] = set()
        self.on_end: list[Callable[[Listening], None]] = [self.listening.discard]
        self._defaults = dict(defaults)
        self.grammars = Grammars(tokenizer, opening.spec.vocab_size, sorted(end_tokens(service.model)))
        self._tokens = ThreadPoolExecutor(1, thread_name_prefix="outsize-tokens")

    def close(self) -> None:
        """Ends its thread."""
        self._tokens.shutdown(wait=False, cancel_futures=True)

    def ask(self, wishes: Sequence[Wish], client: str) -> Listening:
        """Asks for sequences. Raises Problem."""
        listening = Listening(self.service, wishes, client, self._end)
        self.listening.add(listening)
        return listening

    def check_model(self, model: str | None) -> None:
        """Raises Problem for the name of another model."""
        known = (None, "", self.name, self.name.rstrip("/").rpartition("/")[2])
        if model not in known:
            raise Problem(
                404, f"the model {model!r} is not here; this server has {self.name!r}", code="model_not_found"
            )

    async def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """A text's tokens. Raises Problem."""

        def encoded() -> tuple[int, ...]:
            with tokenizer_errors():
                return tuple(self.tokenizer.encode(text, add_special_tokens=special, verbose=False))

        return await self._in_thread(encoded)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[int, ...], str]:
        """A conversation's tokens, and the end of its text. Raises Problem."""

        def encoded() -> tuple[tuple[int, ...], str]:
            own = as_messages(with_arguments(messages))
            tokens = chat_tokens(self.tokenizer, own, tools=tools, variables=variables)
            return tokens, str(self.tokenizer.decode(list(tokens[-8:]), skip_special_tokens=False))

        return await self._in_thread(encoded)

    async def decode_plain(self, tokens: Sequence[int]) -> str:
        """The text of tokens without the special ones. Raises Problem."""
        return await self._in_thread(lambda: str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)))

    async def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included. Raises Problem."""
        return await self._in_thread(lambda: str(self.tokenizer.decode(list(tokens), skip_special_tokens=False)))

    def piece(self, token: int) -> str:
        """The text of one token."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def request(self, body: Sampled, prompt: tuple[int, ...], new_tokens: int | None) -> GenerateRequest:
        """What the engine is asked for a body. ``new_tokens``: None for as many as the context has room for.

        Raises Problem for a prompt that is longer than the context.
        """
        if new_tokens is None:
            new_tokens = self.context - len(prompt)
            if new_tokens < 1:
                raise Problem(400, f"the prompt is too long; need fewer than {self.context} tokens, have {len(prompt)}")
        drawn = {name: self._given(body, name) for name in ("temperature", "top_p", "top_k")}
        request = GenerateRequest(
            "",
            prompt,
            max_new_tokens=new_tokens,
            temperature=drawn["temperature"] or 0.0,
            top_p=drawn["top_p"] or None,
            top_k=1 if drawn["top_p"] == 0 else max(drawn["top_k"] or 0, 0) or None,
            seed=secrets.randbelow(1 << 63),
        )
        if not isinstance(body, OpenAI):
            return request
        vocabulary = self.opening.spec.vocab_size
        biases = {
            int(t): bias for t, bias in (body.logit_bias or {}).items() if t.isascii() and t.isdigit() and len(t) < 10
        }
        if len(biases) < len(body.logit_bias or {}) or any(t >= vocabulary for t in biases):
            raise Problem(
                400, f"logit_bias has a key that is no token; they are 0..{vocabulary - 1}", param="logit_bias"
            )
        return replace(
            request,
            seed=request.seed if body.seed is None else body.seed,
            stop=body.stops,
            min_p=body.min_p or None,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=body.repetition_penalty or 1.0,
            logit_bias=tuple(biases.items()),
        )

    @staticmethod
    def reseeded(request: GenerateRequest, copy: int) -> GenerateRequest:
        """The same request for another choice, which draws otherwise."""
        return replace(request, seed=(request.seed + copy) % (1 << 63))

    @staticmethod
    def with_stops(request: GenerateRequest, stops: tuple[str, ...]) -> GenerateRequest:
        """The same request with other stop strings."""
        return replace(request, stop=stops)

    async def json_form(self, schema: Any) -> Callable[[], Any]:
        """What keeps an answer to JSON of a schema, or to any object. Raises Problem."""
        if schema is not None and not isinstance(schema, dict):
            raise Problem(400, "the schema is no object", param="response_format")
        return await self._in_thread(lambda: self.grammars.for_json(schema))

    def _given(self, body: Sampled, name: str) -> Any:
        value = getattr(body, name)
        return self._defaults.get(name) if value is None else value

    def _end(self, listening: Listening) -> None:
        for tell in self.on_end:
            tell(listening)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokens, work)
        except (UsageError, DamagedModel) as error:  # of this text or these messages
            raise Problem(400, str(error)) from error
        except (OverflowError, TypeError, ValueError) as error:
            raise Problem(400, f"the tokenizer refuses that: {type(error).__name__}") from error
