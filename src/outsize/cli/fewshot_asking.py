"""What ``outsize fewshot`` asks a model, and the row it writes for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from outsize.engine.request import DatasetProgress, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.evals.fewshot.experiment import Prompt, key_of
from outsize.evals.fewshot.metrics import Scored, best
from outsize.evals.fewshot.task import Task
from outsize.evals.requests import Encoder

Row = Mapping[str, Any]


class Choosing:
    """Prompts with choices: how likely each is."""

    name = "fewshot"

    def __init__(self, task: Task) -> None:
        self._task = task

    @property
    def settings(self) -> Row:
        """What comes between a prompt and its answer."""
        return {"task": self._task.name, "target_delimiter": self._task.target_delimiter}

    def key_of(self, row: Row) -> str:
        """That of the prompt with its id, number of examples and seed."""
        return key_of(row)

    def request(self, line: Prompt, encoder: Encoder) -> ScoreRequest | str:
        """All choices of a prompt."""
        choices = [self._task.target_delimiter + choice for choice in line.question.choices]
        return encoder.score_request(line.key, line.context, choices)

    def compute(
        self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]
    ) -> Generator[ScoreResult, None, None]:
        """The results, as they are ready."""
        scored: Generator[ScoreResult, None, None] = model.outsize.score(requests, progress=tell)
        return scored

    def row(self, line: Prompt, result: ScoreResult) -> Row:
        """``predicted``: the likeliest choice as it is, by ``acc``. Choices behind no question have no answer."""
        found = {"logprobs": list(result.logprobs), "tokens": list(result.tokens)}
        if line.shots is None:
            return found
        choices = line.question.choices
        predicted = choices[best("acc", Scored(choices, result.logprobs, result.tokens))]
        return {"answer": line.question.answers[0], "predicted": predicted, **found}


class Answering:
    """Prompts without choices: what the model writes, greedily."""

    name = "fewshot"

    def __init__(self, task: Task) -> None:
        self._task = task

    @property
    def settings(self) -> Row:
        """How to generate."""
        task = self._task
        return {"task": task.name, "max_new_tokens": task.max_new_tokens, "stop": list(task.stop)}

    def key_of(self, row: Row) -> str:
        """That of the prompt with its id, number of examples and seed."""
        return key_of(row)

    def request(self, line: Prompt, encoder: Encoder) -> GenerateRequest:
        """The tokens of a prompt."""
        return GenerateRequest(
            line.key, encoder.prompt(line.context), max_new_tokens=self._task.max_new_tokens, stop=self._task.stop
        )

    def compute(
        self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]
    ) -> Generator[GenerateResult, None, None]:
        """The results, as they are ready."""
        made: Generator[GenerateResult, None, None] = model.outsize.generate(
            requests, tokenizer=encoder.tokenizer, progress=tell
        )
        return made

    def row(self, line: Prompt, result: GenerateResult) -> Row:
        """``predicted``: the text as it came, cut before a stop string; ``answer``: a list where several are right."""
        answers = line.question.answers
        answer = answers[0] if len(answers) == 1 else list(answers)
        return {
            "answer": answer,
            "predicted": result.text,
            "new_tokens": len(result.tokens),
            "finish": result.finish,
        }
