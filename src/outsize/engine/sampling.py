"""Each row of a micro-batch for itself: how it draws its tokens, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from outsize.engine.request import Finish, GenerateRequest

# Tokens of an answer's end in which a stop string is looked for: some bytes each, so four for a character.
TAIL = 8


class Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws a row's next token with that row's own generator, and leaves it as the only one that can be taken.

    So the loop around it is the greedy one, and what a row draws is what it would draw alone, with
    ``torch.manual_seed(seed)`` before. Rows without a temperature keep their scores. ``begin``: tokens before the first
    new one. ``more``: processors of each row's own, such as a grammar's. ``failed``: rows that came to scores that are
    no numbers. ``scores``: the last ones as the model gave them, [rows, vocabulary].
    """

    def __init__(self, requests: Sequence[GenerateRequest], begin: int = 0, more: Sequence[Sequence[Any]] = ()) -> None:
        self.scores: torch.Tensor | None = None
        self._adjusting = [[*_adjusting(r, begin), *(more[i] if more else ())] for i, r in enumerate(requests)]
        self.failed = [False] * len(requests)
        self._generators = [torch.Generator().manual_seed(r.seed) if r.temperature else None for r in requests]
        self._warpers = [_warpers(r) for r in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] in which each row's token is settled."""
        self.scores = scores
        finite = torch.isfinite(scores.max(dim=-1).values).tolist()
        settled = scores.clone()
        for row, generator in enumerate(self._generators):
            if not finite[row]:
                self.failed[row] = True
                settled[row] = 0
                continue
            own = scores[row : row + 1]
            for processor in self._adjusting[row]:
                own = processor(input_ids[row : row + 1], own)
            settled[row] = own[0]
            if generator is not None:
                for warper in self._warpers[row]:
                    own = warper(input_ids[row : row + 1], own)
                chances = torch.softmax(own, dim=-1).cpu()
                token = torch.multinomial(chances, 1, generator=generator)
                settled[row] = float("-inf")
                settled[row, int(token)] = 0
        return settled


class Adjust(LogitsProcessor):  # type: ignore[misc]
    """A row's biases, and its penalties for tokens among the new ones. ``begin``: tokens before those."""

    def __init__(self, request: GenerateRequest, begin: int) -> None:
        self._request = request
        self._begin = begin
        self._bias = torch.tensor([bias for _, bias in request.logit_bias])
        self._biased = torch.tensor([token for token, _ in request.logit_bias], dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [1, vocabulary]: ``+ bias - frequency * count - presence * (count > 0)``."""
        adjusted = scores.clone()
        adjusted[0, self._biased] += self._bias.to(scores)
        counts = torch.bincount(input_ids[0, self._begin :], minlength=scores.shape[-1])[: scores.shape[-1]]
        adjusted[0] -= self._request.frequency_penalty * counts + self._request.presence_penalty * (counts > 0)
        return adjusted


def _adjusting(request: GenerateRequest, begin: int) -> list[Any]:
    """What changes scores before the likeliest is taken or one is drawn."""
    processors: list[Any] = []
    if request.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(request.repetition_penalty))
    if request.logit_bias or request.presence_penalty or request.frequency_penalty:
        processors.append(Adjust(request, begin))
    return processors


def _warpers(request: GenerateRequest) -> list[Any]:
    """transformers' own, in its order."""
    if not request.temperature:
        return []
    warpers: list[Any] = []
    if request.temperature != 1:
        warpers.append(TemperatureLogitsWarper(request.temperature))
    if request.top_k:
        warpers.append(TopKLogitsWarper(request.top_k))
    if request.top_p is not None and request.top_p < 1:
        warpers.append(TopPLogitsWarper(request.top_p))
    if request.min_p:
        warpers.append(MinPLogitsWarper(request.min_p))
    return warpers


class End(StoppingCriteria):  # type: ignore[misc]
    """Says which rows are at their end: a stop string, as many tokens as were asked for, or a failure.

    ``begin``: tokens before the first new one. ``usual``: the model's own stop strings.
    ``reached``: of each row, new tokens up to its end, and what ended it.
    """

    def __init__(
        self, requests: Sequence[GenerateRequest], tokenizer: Any, begin: int, usual: tuple[str, ...] = ()
    ) -> None:
        self.failed = [False] * len(requests)
        self.reached: list[tuple[int, Finish]] = [(0, "")] * len(requests)
        self._requests = requests
        self._tokenizer = tokenizer
        self._begin = begin
        self._usual = usual

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool [rows]."""
        count = input_ids.shape[1] - self._begin
        for row, request in enumerate(self._requests):
            if self.reached[row][0]:
                continue
            stop = (*request.stop, *self._usual)
            if stop and self._stopped(input_ids[row, self._begin :], stop):
                self.reached[row] = (count, "stop")
            elif count >= request.max_new_tokens or self.failed[row]:
                self.reached[row] = (count, "length")
        return torch.tensor([bool(upto) for upto, _ in self.reached], device=input_ids.device)

    def _stopped(self, tokens: torch.Tensor, stop: tuple[str, ...]) -> bool:
        """Whether one is among the last tokens; with special ones as text, for a turn may end in such a one."""
        tail = 4 * max(len(s) for s in stop) + TAIL
        text = self._tokenizer.decode(tokens[-tail:].tolist(), skip_special_tokens=False)
        return any(s in text for s in stop)
