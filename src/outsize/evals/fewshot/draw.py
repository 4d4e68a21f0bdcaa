"""Which examples stand before a question: drawn with a seed, the same on every machine and in every Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random
from typing import TypeVar

from outsize.errors import UsageError
from outsize.evals.fewshot.questions import Question

T = TypeVar("T")


class Examples:
    """What examples are drawn from. ``balanced``: of every choice equally often, as far as the number allows."""

    def __init__(self, questions: Sequence[Question], *, balanced: bool) -> None:
        self._questions = questions
        self._groups: list[list[Question]] = []
        self._names: Sequence[str] = ()
        if balanced and questions:
            classes = max(len(question.choices) for question in questions)
            alike = len({question.choices for question in questions}) == 1
            self._names = questions[0].choices if alike else [f"choice {index}" for index in range(classes)]
            self._groups = [[q for q in questions if q.gold == index] for index in range(classes)]

    def draw(self, shots: int, salt: str, fits: Callable[[Question], bool]) -> list[Question]:
        """``shots`` different examples that fit. A smaller number draws the beginning of what a larger one draws.

        ``salt``: what the draw depends on, beside the examples themselves. Raises UsageError where there are too few.
        """
        if not self._groups:
            drawn = _some(shots, filter(fits, shuffled(self._questions, salt)))
            if len(drawn) < shots:
                raise UsageError("too few examples", need=f"{shots}", have=f"{len(drawn)}")
            return drawn
        return _some(shots, self._in_rounds(salt, fits))

    def _in_rounds(self, salt: str, fits: Callable[[Question], bool]) -> Iterator[Question]:
        """One example of every choice, the choices in any order; then again."""
        groups = [filter(fits, shuffled(group, f"{salt} choice {i}")) for i, group in enumerate(self._groups)]
        for number in count():
            for index in shuffled(range(len(groups)), f"{salt} round {number}"):
                example = next(groups[index], None)
                if example is None:
                    raise UsageError(
                        "too few examples to draw as many of each choice",
                        need=f"{number + 1} whose answer is {self._names[index]}",
                        have=f"{number}",
                    )
                yield example


def shuffled(items: Sequence[T], salt: str) -> Iterator[T]:
    """All items in an order that follows from the salt: Fisher and Yates's, from the front, as far as is asked for.

    Only ``Random.random`` is used, whose numbers Python keeps from version to version.
    """
    random, moved = Random(salt), dict[int, int]()
    for i in range(len(items)):
        j = i + int(random.random() * (len(items) - i))
        at, moved[j] = moved.get(j, j), moved.get(i, i)
        yield items[at]


def _some(most: int, items: Iterator[T]) -> list[T]:
    return [item for _, item in zip(range(most), items, strict=False)]
