"""What comes of an experiment: for each number of examples, the accuracy by every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from outsize.errors import OutsizeError
from outsize.evals.fewshot.experiment import Experiment, Prompt, key_of
from outsize.evals.fewshot.interval import Accuracy, accuracy
from outsize.evals.fewshot.metrics import EXACT_MATCH, MUTUAL_INFO, Scored, best
from outsize.evals.fewshot.questions import Question

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
    judge = _Judge(experiment, by_key)
    lines = tuple(_line(experiment, judge, shots) for shots in experiment.shots)
    if not any(line.rows for line in lines):
        raise OutsizeError(f"not one row could be computed: {error}")
    chance = majority = None
    if not experiment.task.free:
        chance = sum(1 / len(question.choices) for question in experiment.test) / len(experiment.test)
    if experiment.task.choices:
        majority = Counter(q.answers for q in experiment.test).most_common(1)[0][1] / len(experiment.test)
    return Table(lines, chance, majority, error)


def _line(experiment: Experiment, judge: _Judge, shots: int) -> Line:
    draws = experiment.draws(shots)
    metrics = experiment.task.metrics
    right: dict[tuple[str, int | None], int] = dict.fromkeys(((m, seed) for m in metrics for seed in draws), 0)
    rows = 0
    for question in experiment.test:
        answered = [judge.row(question, shots, seed) for seed in draws]
        if None in answered:
            continue
        rows += 1
        for seed, row in zip(draws, answered, strict=True):
            for metric in metrics:
                right[metric, seed] += judge.right(metric, question, row or {})
    found = {m: accuracy(tuple(right[m, seed] / rows for seed in draws), rows) for m in metrics} if rows else {}
    return Line(shots, rows, len(experiment.test) - rows, found)


class _Judge:
    """Says which rows of results are right."""

    def __init__(self, experiment: Experiment, rows: Mapping[str, Row]) -> None:
        self._matching = experiment.task.matching
        self._rows = rows
        self._alone = {p.question.choices: rows.get(p.key, {}) for p in experiment.prompts if p.shots is None}
        self._needs_alone = MUTUAL_INFO in experiment.task.metrics

    def row(self, question: Question, shots: int, seed: int | None) -> Row | None:
        """The row of results; None where it, or what its metrics need beside it, has an error."""
        row = self._rows.get(Prompt(question, "", shots, seed).key)
        failed = row is None or "error" in row
        failed |= self._needs_alone and "logprobs" not in self._alone[question.choices]
        return None if failed else row

    def right(self, metric: str, question: Question, row: Row) -> bool:
        """Whether a metric takes the right answer."""
        if metric == EXACT_MATCH:
            return self._matching.matches(row["predicted"], question.answers)
        alone = self._alone[question.choices]["logprobs"] if metric == MUTUAL_INFO else ()
        scored = Scored(question.choices, row["logprobs"], row["tokens"], alone)
        return best(metric, scored) == question.gold
