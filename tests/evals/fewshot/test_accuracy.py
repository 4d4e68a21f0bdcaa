from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evals.fewshot.task_files import COLOURS, FREE, colours, task

from outsize.errors import OutsizeError
from outsize.evals.fewshot.accuracy import accuracy, tabulate, wilson
from outsize.evals.fewshot.experiment import Experiment, lay_out


def logprobs(choice: int) -> list[float]:
    """Of which a choice is the likeliest."""
    return [-1.0 if index == choice else -5.0 for index in range(3)]


def rows(experiment: Experiment, said: dict[tuple[str, int | None, int | None], int]) -> list[dict[str, Any]]:
    """Results that take the right choice, but for those in ``said``."""
    made = []
    for prompt in experiment.prompts:
        name = (str(prompt.question.id), prompt.shots, prompt.seed)
        choice = said.get(name, prompt.question.gold)
        made.append({**prompt.identity, "logprobs": logprobs(choice), "tokens": [1, 2, 1]})
    return made


def test_accuracy_by_shots_and_draws(tmp_path: Path) -> None:
    found = lay_out(task(tmp_path, COLOURS, colours(6, "known"), colours(4)), [0, 2], [0, 1])
    wrong = {("thing0", 0, None): 1, ("thing1", 2, 0): 0, ("thing1", 2, 1): 0, ("thing2", 2, 1): 0}
    table = tabulate(found, rows(found, wrong))
    none, two = table.lines
    assert (none.shots, none.rows, none.failed) == (0, 4, 0)
    assert none.accuracy["acc"].draws == (0.75,)
    assert two.accuracy["acc"].draws == (0.75, 0.5)
    assert two.accuracy["acc"].mean == pytest.approx(0.625)
    assert (two.accuracy["acc"].low, two.accuracy["acc"].high) == wilson(0.625, 4)
    assert table.chance == pytest.approx(1 / 3)
    assert table.majority == 0.5  # red, green, blue, red
    assert table.error == ""


def test_rows_that_failed_in_any_draw_count_nowhere(tmp_path: Path) -> None:
    found = lay_out(task(tmp_path, COLOURS, colours(6, "known"), colours(4)), [2], [0, 1])
    results = rows(found, {("thing1", 2, 0): 0})
    results[0] = {**found.prompts[0].identity, "error": "too long"}  # thing0 of the first draw
    (line,) = tabulate(found, results).lines
    assert (line.rows, line.failed) == (3, 1)
    assert line.accuracy["acc"].draws == (2 / 3, 1.0)
    assert tabulate(found, results).error == "too long"
    with pytest.raises(OutsizeError, match="not one row could be computed: too long"):
        tabulate(found, [{**row, "error": "too long"} for row in results])


def test_the_probability_of_a_choice_alone(tmp_path: Path) -> None:
    text = COLOURS + "metric: [acc, acc_mutual_info]\n"
    found = lay_out(task(tmp_path, text, [], colours(3)), [0], [0])
    results = [{**p.identity, "logprobs": [-1.0, -2.0, -2.5], "tokens": [1, 1, 1]} for p in found.prompts]
    results[-1]["logprobs"] = [-1.0, -2.0, -3.5]  # so that blue gains most, always
    (line,) = tabulate(found, results).lines
    assert line.accuracy["acc"].mean == pytest.approx(1 / 3)
    results[0]["logprobs"] = [0.0, -2.0, -9.0]  # and here red
    (line,) = tabulate(found, results).lines
    assert line.accuracy["acc_mutual_info"].mean == pytest.approx(2 / 3)
    results[-1] = {**found.prompts[-1].identity, "error": "no token stands for nothing"}
    with pytest.raises(OutsizeError, match="no token stands for nothing"):
        tabulate(found, results)


def test_free_answers(tmp_path: Path) -> None:
    one = task(tmp_path, FREE, [], [{"a": i, "b": 1, "sum": [str(i + 1), "many"]} for i in range(3)])
    found = lay_out(one, [0], [0])
    said = [" 1\n", " many", " 7"]
    table = tabulate(found, [{**p.identity, "predicted": text} for p, text in zip(found.prompts, said, strict=True)])
    assert table.lines[0].accuracy["exact_match"].mean == pytest.approx(2 / 3)
    assert (table.chance, table.majority) == (None, None)


def test_choices_of_each_row_have_no_majority(tmp_path: Path) -> None:
    own = COLOURS.replace("[red, green, blue]", "options")
    options = [["a", "b"], ["a", "b", "c", "d"]]
    found = lay_out(task(tmp_path, own, [], [{"question": "?", "options": o, "colour": 1} for o in options]), [0], [0])
    results = [
        {**p.identity, "logprobs": list(range(len(p.question.choices))), "tokens": [1] * len(p.question.choices)}
        for p in found.prompts
    ]
    table = tabulate(found, results)
    assert table.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert table.majority is None
    assert table.lines[0].accuracy["acc"].mean == 0.5


# R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(right: int, rows: int, low: float, high: float) -> None:
    assert wilson(right / rows, rows) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - right / rows, rows) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_it_lies_between_0_and_1_and_holds_the_share() -> None:
    for rows in (1, 7, 1000):
        for right in range(rows + 1):
            low, high = wilson(right / rows, rows)
            assert 0 <= low <= right / rows <= high <= 1


def test_several_draws_are_no_further_rows() -> None:
    found = accuracy((0.5, 0.7), 40)
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == wilson(found.mean, 40)
    assert found.draws == (0.5, 0.7)
