"""All prompts of a few-shot experiment: every test row with every number of examples and every draw of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from outsize.errors import UsageError
from outsize.evals.fewshot.draw import Examples
from outsize.evals.fewshot.metrics import MUTUAL_INFO
from outsize.evals.fewshot.questions import Question, read_questions
from outsize.evals.fewshot.task import Task

NAMES = ("id", "shots", "seed")  # that together tell one row of results from all others


@dataclass(frozen=True, slots=True)
class Prompt:
    """A test row after examples. ``head``: all that stands before the question; many prompts share one.

    ``seed``: of the draw; None where nothing was drawn. ``shots``: None where the choices alone are asked for, after
    ``head`` only.
    """

    question: Question
    head: str
    shots: int | None = None
    seed: int | None = None
    error: str = ""

    @property
    def context(self) -> str:
        return self.head if self.shots is None else self.head + self.question.text

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"id": self.question.id, "shots": self.shots, "seed": self.seed}

    @property
    def key(self) -> str:
        return key_of(self.identity)

    @property
    def content(self) -> Any:
        """All that its row depends on; the context as a checksum, for there may be many long ones."""
        context = hashlib.sha256(self.context.encode()).hexdigest()
        return [self.key, context, self.question.choices, self.question.answers]


def key_of(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in NAMES])


@dataclass(frozen=True, slots=True)
class Experiment:
    """``prompts``: all of them; ``left_out``: examples that are test rows too, and are not drawn for that."""

    task: Task
    test: Sequence[Question]
    shots: Sequence[int]
    seeds: Sequence[int]
    prompts: Sequence[Prompt]
    left_out: int = 0

    def draws(self, shots: int) -> Sequence[int | None]:
        """The seeds that a number of examples was drawn with; without examples there is nothing to draw."""
        return self.seeds if shots else (None,)


def lay_out(task: Task, shots: Sequence[int], seeds: Sequence[int], limit: int | None = None) -> Experiment:
    """The experiment. ``limit``: the first test rows only.

    Raises UsageError for files that are not as the task says, no test row, and fewer examples than shots.
    """
    test = read_questions(task.test, task)[:limit]
    if not test:
        raise UsageError(f"{task.test} has no rows")
    most = max(shots)
    examples, left_out = _examples(task, most, test) if most else (Examples((), balanced=False), 0)

    def head(question: Question | None, number: int, seed: int) -> str:
        """Instruction and examples, up to where the question begins: one that is asked alone, or any (None)."""
        salt = f"seed {seed}" if question is None else f"seed {seed} for {json.dumps(question.id)}"
        try:  # as many as the largest number wants: the others are beginnings of it
            drawn = examples.draw(most, salt, lambda one: question is None or one.text != question.text)[:number]
        except UsageError as error:
            out = f"; {left_out} more are test rows too, and are left out" if left_out else ""
            what = f"{task.examples}: {error.what} for {most} shots"
            remedy = "draw: per_row leaves out no other than the row that is asked" if left_out else ""
            raise UsageError(what, need=error.need, have=error.have + out, remedy=remedy) from None
        parts = [task.instruction] if task.instruction else []
        parts += [example.text + task.target_delimiter + example.answers[0] for example in drawn]
        return "".join(part + task.fewshot_delimiter for part in parts)

    shared = cache(head)
    prompts = []
    for number in shots:
        for seed in seeds if number else seeds[:1]:
            for question in test:
                alone = number and task.draw == "per_row"
                before = head(question, number, seed) if alone else shared(None, number, seed)
                prompts.append(Prompt(question, before, number, seed if number else None))
    if MUTUAL_INFO in task.metrics:
        first = {question.choices: question for question in reversed(test)}
        prompts += [Prompt(question, task.unconditional) for question in first.values()]
    return Experiment(task, test, shots, seeds, prompts, left_out)


def _examples(task: Task, most: int, test: Sequence[Question]) -> tuple[Examples, int]:
    """What examples are drawn from, and how many are left out because they are test rows too."""
    if task.examples is None:
        raise UsageError(f"{task.path}: the key examples is missing", need=f"it, for {most} shots")
    examples = read_questions(task.examples, task)
    asked = {question.text for question in test} if task.draw == "fixed" else set()
    fit = [example for example in examples if example.text not in asked]
    return Examples(fit, balanced=task.balanced), len(examples) - len(fit)
