"""What lm-evaluation-harness asks to be scored, as requests to the model, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outsize.run.dataset import ScoreRequest, ScoreResult

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]  # a context, and what comes behind it
Answer = tuple[float, bool]  # sum of log-probabilities, whether each token was the likeliest


class Scores:
    """Questions of one pair or several, each pair computed once, all continuations of a context in one request.

    ``requests``: for the model. ``failed``: of questions that cannot be answered, why.
    """

    def __init__(self, asked: Sequence[Sequence[Pair]]) -> None:
        self.failed: dict[int, str] = {}
        self._asked = asked
        self._waiting: dict[Pair, list[int]] = {}
        self._left = [len(set(pairs)) for pairs in asked]
        self._answers: dict[Pair, Answer] = {}
        contexts: dict[Tokens, dict[Tokens, None]] = {}  # a dict keeps the order, and each once
        for number, pairs in enumerate(asked):
            for pair in dict.fromkeys(pairs):
                self._waiting.setdefault(pair, []).append(number)
                contexts.setdefault(pair[0], {})[pair[1]] = None
        self.requests = [
            ScoreRequest(str(number), context, tuple(behind))
            for number, (context, behind) in enumerate(contexts.items())
        ]

    def take(self, result: ScoreResult) -> Iterator[tuple[int, Answer]]:
        """The questions that a result completes: number, sum over the pairs, whether every token was the likeliest."""
        request = self.requests[int(result.id)]
        for choice, continuation in enumerate(request.continuations):
            pair = (request.context, continuation)
            waiting = self._waiting.pop(pair)
            if result.error:
                self.failed.update(dict.fromkeys(waiting, result.error))
                continue
            self._answers[pair] = (result.logprobs[choice], result.greedy[choice])
            for number in waiting:
                self._left[number] -= 1
                if not self._left[number]:
                    yield number, self._sum(number)

    def _sum(self, number: int) -> Answer:
        answers = [self._answers[pair] for pair in self._asked[number]]
        return sum(logprob for logprob, _ in answers), all(greedy for _, greedy in answers)
