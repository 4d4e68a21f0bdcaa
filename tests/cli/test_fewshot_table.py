"""The table of a few-shot experiment in its three forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from outsize.cli import fewshot_table
from outsize.evals.fewshot.accuracy import Line, Table, accuracy
from outsize.evals.fewshot.experiment import Experiment
from outsize.evals.fewshot.questions import Question
from outsize.evals.fewshot.task import Task
from outsize.evals.fewshot.template import parse_template

NOWHERE = Path("t.yaml")
TASK = Task.model_construct(
    path=NOWHERE, task="sky", template=parse_template("{q}"), answer="a", choices=("x", "y"), metric=("acc", "acc_norm")
)
TEST = [Question(i, f"q{i}", ("x",), ("x", "y")) for i in range(40)]
EXPERIMENT = Experiment(TASK, TEST, [0, 4], [0, 1], [])
FOUND = {"acc": accuracy((0.5,), 40), "acc_norm": accuracy((0.25,), 40)}
MORE = {"acc": accuracy((0.9, 1.0), 39), "acc_norm": accuracy((0.6, 0.5), 39)}
TABLE = Table((Line(0, 40, 0, FOUND), Line(4, 39, 1, MORE)), chance=0.5, majority=1.0, error="too long")


def test_text() -> None:
    assert fewshot_table.as_text(EXPERIMENT, TABLE) == [
        "sky: 40 test rows, 2 choices, chance 50.0%, majority 100.0%; examples drawn for all rows, seeds 0, 1",
        "",
        "shots  rows                acc           acc_norm",
        "    0    40  50.0% (35.2-64.8)  25.0% (14.2-40.2)",
        "    4    39  95.0% (83.3-98.6)  55.0% (39.6-69.5)",
        "single draws, lowest and highest:",
        "    4    39         90.0-100.0          50.0-60.0",
        "",
        "means over the draws; in brackets 95 % intervals (Wilson) for another set of as many test rows",
        "rows that could not be computed, and count nowhere: 1 with 4 shots; the first: too long",
    ]


def test_one_draw_and_nothing_that_failed() -> None:
    alone = Experiment(TASK, TEST, [0], [0], [])
    lines = fewshot_table.as_text(alone, Table(TABLE.lines[:1], chance=0.5))
    assert lines[0] == "sky: 40 test rows, 2 choices, chance 50.0%"
    assert len(lines) == 6
    assert lines[-1] == "in brackets 95 % intervals (Wilson) for another set of as many test rows"


def test_a_number_of_shots_without_rows() -> None:
    table = Table((TABLE.lines[0], Line(4, 0, 40, {})), error="too long")
    assert fewshot_table.as_text(EXPERIMENT, table)[4].split() == ["4", "0", "-", "-"]
    assert fewshot_table.as_json(EXPERIMENT, table)["table"][1]["accuracy"] == {}


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_plots(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    table = Table((*TABLE.lines, Line(8, 0, 40, {})), chance=0.5)
    fewshot_table.save_plot(EXPERIMENT, table, "a/model", path)
    assert path.read_bytes().startswith(start)
