"""Rows of a task's files, as the model sees them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outsize.engine.request import is_text
from outsize.errors import UsageError
from outsize.evals.fewshot.task import Task
from outsize.evals.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Question:
    """``text``: the filled template. ``answers``: the right ones; the first is what an example shows.

    ``choices``: none where the answer is free, else ``answers`` is one of them.
    """

    id: str | int
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def gold(self) -> int:
        return self.choices.index(self.answers[0])


def read_questions(path: Path, task: Task) -> list[Question]:
    """All rows of a .jsonl or .csv file. Raises UsageError, with file and line, for one that is not as the task says.

    In CSV the first line has the names, and all values are texts. A row without an id has its line's number, from 1.
    """
    questions: list[Question] = []
    lines: dict[str, int] = {}
    for record in _csv(path) if path.suffix.lower() == ".csv" else read_records(str(path)):
        if record.error:
            raise UsageError(f"{path}: {record.error}")
        first = lines.setdefault(record.key, record.line)
        if first != record.line:
            raise UsageError(f"{path}: line {record.line}: the id {record.id!r} is that of line {first}")
        try:
            questions.append(_question(record, task))
        except UsageError as error:
            raise UsageError(f"{path}: line {record.line}: {error.what}", need=error.need) from None
    return questions


def _question(record: Record, task: Task) -> Question:
    values = {name: _text(name, _value(record, task, name)) for name in task.template.fields}
    text = task.template.fill(values)
    answer = _value(record, task, task.answer)
    if task.free:
        return Question(record.id, text, _answers(task.answer, answer))
    choices = task.choices or _own_choices(task.choices_field, _value(record, task, task.choices_field))
    return Question(record.id, text, (_chosen(answer, choices),), choices)


def _value(record: Record, task: Task, name: str) -> Any:
    column = task.columns.get(name, name)
    fields: Mapping[str, Any] = {"id": record.id, **record.fields}
    if column not in fields:
        raise UsageError(f"it lacks {column!r}", need=f"it, for {task.path.name} names it")
    return fields[column]


def _text(name: str, value: Any) -> str:
    if is_text(value):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise UsageError(f"{name!r} is neither a text nor a number")


def _answers(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and value:
        return tuple(_text(name, one) for one in value)
    return (_text(name, value),)


def _own_choices(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(one and is_text(one) for one in value):
        raise UsageError(f"{name!r} is no list of texts")
    if len(value) < 2 or len(set(value)) < len(value):
        raise UsageError(f"{name!r} must be two different choices at least, and none twice")
    return tuple(value)


def _chosen(answer: Any, choices: tuple[str, ...]) -> str:
    """The right choice: given as its text, or as a whole number, the index from 0."""
    if isinstance(answer, str) and answer in choices:
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return choices[answer]
    raise UsageError(
        f"the answer {json.dumps(answer)[:60]} is none of the choices",
        need=f"one of {json.dumps(choices, ensure_ascii=False)[:200]}, or its index from 0",
    )


def _csv(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise UsageError(f"{path}: line {reader.line_num}: it has not as many values as there are names")
                fields: dict[str, Any] = dict(row)
                yield Record(reader.line_num, fields.pop("id", reader.line_num), fields)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}") from error
