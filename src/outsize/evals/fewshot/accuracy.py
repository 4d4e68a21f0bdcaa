"""What comes of an experiment: for each number of examples, the accuracy by every metric and how sure it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from outsize.errors import OutsizeError
from outsize.evals.fewshot.experiment import Experiment, Prompt, key_of
from outsize.evals.fewshot.metrics import MUTUAL_INFO, Scored, best
from outsize.evals.fewshot.questions import Question
from outsize.evals.fewshot.task import Task

Row = Mapping[str, Any]
Z = 1.959963984540054  # the standard normal distribution's 97.5 % quantile: 95 % lie within +-Z


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of right answers, its 95 % interval, and the shares of the single draws that it is the mean of."""

    mean: float
    low: float
    high: float
    draws: tuple[float, ...]


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


def accuracy(draws: tuple[float, ...], rows: int) -> Accuracy:
    """The mean over draws of examples, with the Wilson interval for that share of ``rows`` test rows.

    It says how far another set of as many test rows might lie. Several draws ask the same rows again, so they do not
    count as more rows: an average over draws varies less between sets of rows than one draw does, never more, and the
    interval errs to the wide side. What other examples would change is not in it; the single draws show that.
    """
    mean = math.fsum(draws) / len(draws)
    low, high = wilson(mean, rows)
    return Accuracy(mean, low, high, draws)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Bounds between 0 and 1 that hold the true share in 95 % of samples, about.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p`` the share of ``n`` rows: E. B. Wilson,
    Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212. It keeps its
    promise near 0 and 1 too, where the mean plus and minus two standard errors does not.
    """
    spread = Z * Z / rows
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)
