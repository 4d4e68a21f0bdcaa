"""One sequence of a service: its cache, transformers' own generation, and each token told as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

from outsize.engine.finite import NOT_FINITE, REMEDY
from outsize.engine.generation import end_tokens, generate_with
from outsize.engine.logits import OnceMoreError, Pick
from outsize.engine.request import Finish, GenerateRequest
from outsize.engine.sampling import Draw
from outsize.engine.scheduler import Job
from outsize.engine.text_stream import TextStream
from outsize.models.tracing.cache_argument import with_cache
from outsize.planner.batches import Shape, logit_rows
from outsize.planner.request_cost import Sequencing

if TYPE_CHECKING:
    from outsize.engine.service import Service


@dataclass(frozen=True, slots=True)
class Wish:
    """A request to a service.

    ``logprobs``: tell how likely each new token was, beside so many of the likeliest; with ``score_prompt`` the
    prompt's too, and then no new token is needed. ``keep_special``: special tokens are part of the text. ``processor``:
    makes what changes the scores of this sequence alone, such as a grammar's, in transformers' form.
    """

    request: GenerateRequest
    logprobs: int | None = None
    score_prompt: bool = False
    keep_special: bool = False
    processor: Callable[[], Any] | None = None

    @property
    def shape(self) -> Shape:
        """The micro-batch of it alone."""
        return Shape(1, len(self.request.prompt), new_tokens=max(self.request.max_new_tokens, 1), cached=True)


@dataclass(frozen=True, slots=True)
class Likely:
    """A token's natural log-probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """The prompt has been scored: each of its tokens but the first."""

    tokens: tuple[Likely, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A new token, and the text that is certain with it; often none, sometimes that of several.

    One that ends the answer has no text, and is told only where it is asked how likely tokens are.
    """

    token: int
    text: str
    likely: Likely | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last of an answer: the rest of its text, why it ended, new tokens, and those of the prompt not computed."""

    text: str
    finish: Finish
    new_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer."""

    error: str


Event = Scored | Token | Ended | Failed


class Answer:
    """One sequence from its request to its end. ``known``: the tokens that its cache is of.

    ``work`` is what its job does; events are told in the service's thread.
    """

    def __init__(self, service: Service, wish: Wish, tell: Callable[[Event], None]) -> None:
        self.wish = wish
        self.tell = tell
        self.job: Job | None = None
        self.cancelled = False
        self.cache: Any = None
        self.cached = 0
        self.new: list[int] = []
        self._service = service
        self._finish: Finish = ""
        self._error = ""
        self._begun = False
        request = wish.request
        stops = (*request.stop, *(service.model.generation_config.stop_strings or ()))
        special = service.special
        self._ends = end_tokens(service.model)
        self._stop_ids = frozenset(special[text] for text in stops if text in special)
        self._text = TextStream(service.tokenizer, stops, keep_special=wish.keep_special)

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and new tokens."""
        return (*self.wish.request.prompt, *self.new)

    @property
    def sequencing(self) -> Sequencing:
        """What is left of it, as predictions take it."""
        prompt, left = len(self.wish.request.prompt), self.wish.request.max_new_tokens - len(self.new)
        return Sequencing(1, prompt + len(self.new), left) if self._begun else Sequencing(prompt, 0, left)

    def work(self) -> None:
        """Computes it, in a greenlet."""
        service, request = self._service, self.wish.request
        prompt, new = request.prompt, request.max_new_tokens
        draw = Draw([request], self._begin, [[self.wish.processor()]] if self.wish.processor else ())
        last = None
        if self.wish.score_prompt:
            last = self._score()
        else:
            self._begin_cache(prompt)
        service.counts.prompt_tokens += len(prompt) - self.cached
        service.counts.cached_tokens += self.cached
        if not new:
            self._finish = "length"
        elif last is not None and new == 1:
            scores = draw(torch.tensor([prompt]), last)
            self._take(int(scores.argmax(dim=-1)), draw)
        else:
            ids = torch.tensor([prompt])
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if self.cache is not None:
                inputs |= with_cache(service.model, self.cache)
            service.sweep.context.tokens = self._room
            generate_with(service.model, service.tokenizer, inputs, new, draw, Turn(self, draw))

    def finish(self) -> None:
        """Tells the end, once the job is done."""
        if self._error:
            self.tell(Failed(self._error))
            return
        rest = self._text.end()
        self.tell(Ended(rest, "stop" if self._text.stopped else self._finish, len(self.new), self.cached))

    def take(self, token: int, draw: Draw) -> bool:
        """A token has come: tells it. Whether it was the last."""
        if self._take(token, draw):
            return True
        job = self._service.sweep.context
        assert isinstance(job, Job)
        job.pause()
        return False

    def _take(self, token: int, draw: Draw) -> bool:
        self._begun = True
        if draw.failed[0]:
            self._error = f"{NOT_FINITE}; try: {REMEDY}"
            return True
        self.new.append(token)
        self._service.counts.new_tokens += 1
        likely = None
        if self.wish.logprobs is not None and draw.scores is not None:
            likely = likeliest(draw.scores, [token], self.wish.logprobs)[0]
        if token in self._ends or token in self._stop_ids:
            self._finish = "eos" if token in self._ends else "stop"
            if likely is not None:
                self.tell(Token(token, "", likely))
            return True
        self.tell(Token(token, self._text.push(token), likely))
        if self._text.stopped:
            self._finish = "stop"
        elif len(self.new) >= self.wish.request.max_new_tokens:
            self._finish = "length"
        return bool(self._finish)

    @property
    def _begin(self) -> int:
        """Tokens before the first new one; a decoder beside an encoder begins with one of its own."""
        return 1 if self._service.spec.encoder_decoder else len(self.wish.request.prompt)

    @property
    def _room(self) -> int:
        return self._begin + max(self.wish.request.max_new_tokens, 1)

    def _begin_cache(self, prompt: tuple[int, ...]) -> None:
        """A cache with room for all, and with what is known of the prompt's beginning."""
        service = self._service
        if service.sharing:
            self.cache, self.cached = service.kept.begin(prompt, self._room, service.caches_underway())

    def _score(self) -> torch.Tensor:
        """How likely each token of the prompt is; the logits [1, vocabulary] after its last one."""
        service, prompt = self._service, self.wish.request.prompt
        assert service.head is not None
        most = logit_rows(service.spec)
        while True:
            inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt]), "use_cache": service.sharing}
            if service.sharing:
                self.cache, _ = service.kept.begin((), self._room, ())
                inputs |= with_cache(service.model, self.cache)
            pick = Pick([0] * len(prompt), list(range(len(prompt))), most)
            found: list[Likely] = []
            try:
                for several in service.head.logits(service.model, pick, inputs):
                    for chunk in torch.split(several, most):
                        after = prompt[len(found) + 1 :][: chunk.shape[0]]
                        found += likeliest(chunk[: len(after)], after, self.wish.logprobs or 0) if after else ()
                        last = chunk[-1:]
                break
            except OnceMoreError:
                continue
        self.tell(Scored(tuple(found)))
        if self.cache is not None:
            for layer in self.cache.layers:
                layer.crop(-1)  # generating computes the last token of a prompt itself
        return last.float()


class Turn(StoppingCriteria):  # type: ignore[misc]
    """Tells an answer's tokens as they come, and lets others have their turn after each."""

    def __init__(self, answer: Answer, draw: Draw) -> None:
        self._answer, self._draw = answer, draw

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool [1]: whether the answer is at its end."""
        done = self._answer.take(int(input_ids[0, -1]), self._draw)
        return torch.tensor([done], device=input_ids.device)


def likeliest(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Likely]:
    """How likely each token is by its row of logits [tokens, vocabulary], in float32, and the ``top`` likeliest."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
    values, places = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    tops = [tuple(zip(p, v, strict=True)) for p, v in zip(places.tolist(), values.tolist(), strict=True)]
    return [Likely(*one) for one in zip(tokens, own, tops, strict=True)]
