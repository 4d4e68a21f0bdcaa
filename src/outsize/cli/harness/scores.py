"""What the harness asks to be scored, as requests to the model, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outsize.engine.request import ScoreRequest, ScoreResult

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]  # a context, and what comes behind it
Answer = tuple[float, bool]  # sum of log-probabilities, whether each token was the likeliest


class Scores:
    """Questions of one pair or several; each pair is computed once, and fails alone.

    ``requests``: for the model, which finds by itself what they share. ``failed``: of questions without an answer, why.
    """

    def __init__(self, asked: Sequence[Sequence[Pair]]) -> None:
        self.failed: dict[int, str] = {}
        self._asked = asked
        self._left = [len(set(pairs)) for pairs in asked]
        self._answers: dict[Pair, Answer] = {}
        self._waiting: dict[Pair, list[int]] = {}
        for number, pairs in enumerate(asked):
            for pair in dict.fromkeys(pairs):
                self._waiting.setdefault(pair, []).append(number)
        self._pairs = list(self._waiting)
        self.requests = [
            ScoreRequest(str(place), context, (continuation,))
            for place, (context, continuation) in enumerate(self._pairs)
        ]

    def take(self, result: ScoreResult) -> Iterator[tuple[int, Answer]]:
        """The questions that a result completes: number, sum over the pairs, whether every token was the likeliest."""
        pair = self._pairs[int(result.id)]
        if result.error:
            self.failed.update(dict.fromkeys(self._waiting[pair], result.error))
            return
        self._answers[pair] = (result.logprobs[0], result.greedy[0])
        for number in self._waiting[pair]:
            self._left[number] -= 1
            if not self._left[number]:
                answers = [self._answers[one] for one in self._asked[number]]
                yield number, (sum(logprob for logprob, _ in answers), all(greedy for _, greedy in answers))
