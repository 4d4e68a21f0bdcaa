"""The few-shot tasks in examples/: whole, about words that the bundled model never saw, as their script writes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from outsize.evals.fewshot.experiment import lay_out
from outsize.evals.fewshot.task import read_task

ROOT = Path(__file__).parents[1]
TASKS = sorted((ROOT / "examples" / "tasks").glob("*.yaml"))


@cache
def script(name: str) -> ModuleType:
    """A script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_some() -> None:
    assert len(TASKS) >= 3


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task(path: Path) -> None:
    task = read_task(path)
    found = lay_out(task, [0, 1, 8], [0, 1, 2])
    assert found.left_out == 0
    assert len(found.test) == 48
    held_out = script("fewshot_tasks").word_is_held_out
    assert task.examples is not None
    for file, words in zip((task.examples, task.test), script("fewshot_examples").words(path.stem), strict=True):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert all(held_out(row["word"]) for row in rows)
        assert rows == [script("fewshot_examples").ROWS[path.stem](word) for word in words]
