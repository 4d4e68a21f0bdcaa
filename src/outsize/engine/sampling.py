"""Each row of a micro-batch for itself: how it draws its tokens, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
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
    ``torch.manual_seed(seed)`` before. Rows without a temperature keep their scores. ``failed``: rows that came to
    scores that are no numbers.
    """

    def __init__(self, requests: Sequence[GenerateRequest]) -> None:
        self.failed = [False] * len(requests)
        self._generators = [torch.Generator().manual_seed(r.seed) if r.temperature else None for r in requests]
        self._warpers = [_warpers(r) for r in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] in which each row's token is settled."""
        finite = torch.isfinite(scores.max(dim=-1).values).tolist()
        settled = scores.clone()
        for row, generator in enumerate(self._generators):
            if not finite[row]:
                self.failed[row] = True
                settled[row] = 0
            elif generator is not None:
                own = scores[row : row + 1]
                for warper in self._warpers[row]:
                    own = warper(input_ids[row : row + 1], own)
                chances = torch.softmax(own, dim=-1).cpu()
                token = torch.multinomial(chances, 1, generator=generator)
                settled[row] = float("-inf")
                settled[row, int(token)] = 0
        return settled


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
