"""Task files and their rows, written for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outsize.evals.fewshot.task import Task, read_task

COLOURS = """
template: "Q: {question}"
choices: [red, green, blue]
answer: colour
examples: examples.jsonl
test: test.jsonl
"""
FREE = """
template: "{a} plus {b} is"
answer: sum
fewshot_delimiter: "\\n"
examples: examples.jsonl
test: test.jsonl
"""


def colours(count: int, what: str = "thing") -> list[dict[str, Any]]:
    """Rows whose answers are red, green, blue, red and so on."""
    return [{"id": f"{what}{i}", "question": f"{what} {i}?", "colour": i % 3} for i in range(count)]


def write(folder: Path, text: str, examples: list[Any], test: list[Any]) -> Path:
    """A task file with its two files of rows."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, rows in (("examples", examples), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "task.yaml"
    path.write_text(text)
    return path


def task(folder: Path, text: str, examples: list[Any], test: list[Any]) -> Task:
    """The same, read."""
    return read_task(write(folder, text, examples, test))
