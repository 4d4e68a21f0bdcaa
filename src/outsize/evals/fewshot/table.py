"""What comes of an experiment: for each number of examples, the accuracy by every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from outsize.errors import OutsizeError
from outsize.evals.fewshot.experiment import Experiment, Prompt, key_of
from outsize.evals.fewshot.interval import Accuracy, accuracy
from outsize.evals.fewshot.metrics import MUTUAL_INFO, Scored, best
from outsize.evals.fewshot.questions import Question
from outsize.evals.fewshot.task import Task

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One number of examples. ``rows``: test rows that every draw answered; ``failed``: others, which count nowhere."""

    shots: int
    rows: int
    failed: int
    accuracy: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Table:
    """``chance``: the share that guessing gets right; ``majority``: that the test rows' commonest answer does.

    Both only where there are choices, ``majority`` only where they are the same for all rows. ``error``: the first of a
    row that failed.
    """

    lines: tuple[Line, ...]
    chance: float | None = None
    majority: float | None = None
    error: str = ""


def tabulate(experiment: Experiment, rows: Iterable[Row]) -> Table:
    """The table, from the rows of all prompts. Raises OutsizeError where none of the prompts could be answered."""
    by_key = {key_of(row): row for row in rows}
    error = next((str(row["error"]) for row in by_key.values() if "error" in row), "")
    lines = tuple(_line(experiment, by_key, shots) for shots in experiment.shots)
    if not any(line.rows for line in lines):
        raise OutsizeError(f"not one row could be computed: {error}")
    chance = majority = None
    if not experiment.task.free:
        chance = sum(1 / len(question.choices) for question in experiment.test) / len(experiment.test)
    if experiment.task.choices:
        majority = Counter(q.answers for q in experiment.test).most_common(1)[0][1] / len(experiment.test)
    return Table(lines, chance, majority, error)


def _line(experiment: Experiment, rows: Mapping[str, Row], shots: int) -> Line:
    metrics, draws = experiment.task.metrics, experiment.draws(shots)
    alone = {p.question.choices: rows.get(p.key, {}).get("logprobs") for p in experiment.prompts if p.shots is None}
    judged = [
        [_judged(experiment.task, question, rows.get(Prompt(question, "", shots, seed).key), alone) for seed in draws]
        for question in experiment.test
    ]
    right = [[one for one in row if one] for row in judged if all(row)]  # [rows, draws, metrics]
    found = {}
    for place, metric in enumerate(metrics if right else ()):
        shares = [sum(row[draw][place] for row in right) / len(right) for draw in range(len(draws))]
        found[metric] = accuracy(tuple(shares), len(right))
    return Line(shots, len(right), len(judged) - len(right), found)


def _judged(task: Task, question: Question, row: Row | None, alone: Mapping[tuple[str, ...], Any]) -> list[bool]:
    """Whether each metric takes the right answer; nothing where the row, or what it needs beside it, has an error."""
    if row is None or "error" in row or (MUTUAL_INFO in task.metrics and not alone[question.choices]):
        return []
    if task.free:
        return [task.matching.matches(row["predicted"], question.answers)]
    scored = Scored(question.choices, row["logprobs"], row["tokens"], alone.get(question.choices) or ())
    return [best(metric, scored) == question.gold for metric in task.metrics]
