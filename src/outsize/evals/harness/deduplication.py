"""What the harness asks, as requests to the model, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from outsize.engine.request import GenerateRequest, ScoreRequest


class Deduplicated:
    """Questions of one request or several; equal requests are computed once, and each fails alone.

    ``requests``: for the model, which finds by itself what they share. ``failed``: of questions without an answer, why.
    """

    def __init__(self, asked: Sequence[Sequence[ScoreRequest | GenerateRequest]]) -> None:
        self.failed: dict[int, str] = {}
        self._asked = asked
        self._left = [len(set(requests)) for requests in asked]
        self._results: dict[ScoreRequest | GenerateRequest, Any] = {}
        self._waiting: dict[ScoreRequest | GenerateRequest, list[int]] = {}
        for number, requests in enumerate(asked):
            for request in dict.fromkeys(requests):
                self._waiting.setdefault(request, []).append(number)
        self.requests = [replace(request, id=str(place)) for place, request in enumerate(self._waiting)]

    def take(self, result: Any) -> Iterator[tuple[int, list[Any]]]:
        """The questions that a result completes: number, results of all its requests."""
        request = replace(self.requests[int(result.id)], id="")
        if result.error:
            self.failed.update(dict.fromkeys(self._waiting[request], result.error))
            return
        self._results[request] = result
        for number in self._waiting[request]:
            self._left[number] -= 1
            if not self._left[number]:
                yield number, [self._results[one] for one in self._asked[number]]
