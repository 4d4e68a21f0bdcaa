"""What a few-shot experiment asks a model, and the row that it makes of each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outsize.engine.request import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.evals.dataset_run import Job
from outsize.evals.fewshot.experiment import Prompt, key_of
from outsize.evals.fewshot.metrics import Scored, best
from outsize.evals.fewshot.task import Task
from outsize.evals.requests import Encoder


def job_of(task: Task) -> Job:
    """How likely each choice is; or what the model writes, greedily, where the answer is free."""

    def choices(line: Prompt, encoder: Encoder) -> ScoreRequest | str:
        texts = [task.target_delimiter + choice for choice in line.question.choices]
        return encoder.score_request(line.key, line.context, texts)

    def text(line: Prompt, encoder: Encoder) -> GenerateRequest:
        prompt, most = encoder.prompt(line.context), task.max_new_tokens
        most = most if "max_new_tokens" in task.model_fields_set else encoder.new_tokens(prompt, most)
        return GenerateRequest(line.key, prompt, max_new_tokens=most, stop=task.stop)

    if task.free:
        settings = {"task": task.name, "max_new_tokens": task.max_new_tokens, "stop": list(task.stop)}
        return Job("fewshot", settings, key_of, text, _written)
    settings = {"task": task.name, "target_delimiter": task.target_delimiter}
    return Job("fewshot", settings, key_of, choices, _chosen)


def _chosen(line: Prompt, result: ScoreResult) -> Mapping[str, Any]:
    """``predicted``: the likeliest choice as it is, by ``acc``. Choices after no question have no answer."""
    found = {"logprobs": list(result.logprobs), "tokens": list(result.tokens)}
    if line.shots is None:
        return found
    choices = line.question.choices
    predicted = choices[best("acc", Scored(choices, result.logprobs, result.tokens))]
    return {"answer": line.question.answers[0], "predicted": predicted, **found}


def _written(line: Prompt, result: GenerateResult) -> Mapping[str, Any]:
    """``predicted``: the text as it came, cut before a stop string; ``answer``: a list where several are right."""
    answers = line.question.answers
    answer = answers[0] if len(answers) == 1 else list(answers)
    return {"answer": answer, "predicted": result.text, "new_tokens": len(result.tokens), "finish": result.finish}
