from __future__ import annotations

from pathlib import Path

import pytest
from evals.fewshot.task_files import COLOURS, FREE, colours, task

from outsize.errors import UsageError
from outsize.evals.fewshot.experiment import Experiment, key_of, lay_out


def test_a_prompt_is_written_as_the_harness_writes_it(tmp_path: Path) -> None:
    text = COLOURS + "instruction: Name the colour.\n"
    one = task(tmp_path, text, [{"question": "grass", "colour": "green"}], [{"question": "sky", "colour": "blue"}])
    found = lay_out(one, [0, 1], [0])
    assert [(p.shots, p.seed, p.context) for p in found.prompts] == [
        (0, None, "Name the colour.\n\nQ: sky"),
        (1, 0, "Name the colour.\n\nQ: grass green\n\nQ: sky"),
    ]


def test_delimiters(tmp_path: Path) -> None:
    text = FREE + "target_delimiter: '='\n"
    one = task(tmp_path, text, [{"a": 1, "b": 1, "sum": ["2", "two"]}], [{"a": 1, "b": 2, "sum": "3"}])
    (found,) = lay_out(one, [1], [0]).prompts
    assert found.context == "1 plus 1 is=2\n1 plus 2 is"


def experiment(folder: Path, more: str = "", *, shots: list[int], seeds: list[int], tests: int = 4) -> Experiment:
    return lay_out(task(folder, COLOURS + more, colours(12, "known"), colours(tests, "asked")), shots, seeds)


def test_every_row_with_every_number_of_examples_and_every_draw(tmp_path: Path) -> None:
    found = experiment(tmp_path, shots=[0, 1, 3], seeds=[0, 1])
    assert len(found.prompts) == 4 * (1 + 2 + 2)
    assert len({prompt.key for prompt in found.prompts}) == 20
    assert found.draws(0) == (None,)
    assert found.draws(3) == [0, 1]
    for prompt in found.prompts:
        assert key_of(prompt.identity) == prompt.key
        assert prompt.context.count("known") == prompt.shots
        assert prompt.context.endswith(prompt.question.text)


def test_a_draw_is_the_same_for_all_rows_and_grows(tmp_path: Path) -> None:
    found = experiment(tmp_path, shots=[1, 3], seeds=[0, 1])
    heads = {
        (p.shots, p.seed): {q.head for q in found.prompts if (q.shots, q.seed) == (p.shots, p.seed)}
        for p in found.prompts
    }
    assert all(len(head) == 1 for head in heads.values())
    (one,), (three,), (other,) = heads[1, 0], heads[3, 0], heads[3, 1]
    assert three.startswith(one)
    assert three != other


def test_a_draw_for_each_row(tmp_path: Path) -> None:
    found = experiment(tmp_path, "draw: per_row\n", shots=[2, 4], seeds=[0], tests=12)
    two, four = found.prompts[:12], found.prompts[12:]
    assert len({prompt.head for prompt in two}) > 6
    assert all(b.head.startswith(a.head) for a, b in zip(two, four, strict=True))


def test_a_row_is_no_example_of_itself(tmp_path: Path) -> None:
    rows = colours(6)
    one = task(tmp_path, COLOURS + "draw: per_row\n", rows, rows)
    for prompt in lay_out(one, [5], [0, 1]).prompts:
        assert prompt.question.text not in prompt.head
    with pytest.raises(UsageError, match="too few examples for 6 shots; need 6, have 5"):
        lay_out(one, [6], [0])
    one = task(tmp_path, COLOURS, [*rows, *colours(3, "known")], rows)
    found = lay_out(one, [3], [0])
    assert found.left_out == 6
    assert all(prompt.head.count("known") == 3 for prompt in found.prompts)
    with pytest.raises(UsageError, match=r"need 4, have 3; 6 more are test rows too.*per_row"):
        lay_out(one, [4], [0])


def test_choices_without_a_question(tmp_path: Path) -> None:
    found = experiment(tmp_path, "metric: [acc_mutual_info]\nunconditional: 'A:'\n", shots=[0], seeds=[0])
    alone = [prompt for prompt in found.prompts if prompt.shots is None]
    assert [(p.context, p.seed, p.question.choices) for p in alone] == [("A:", None, ("red", "green", "blue"))]
    own = COLOURS.replace("[red, green, blue]", "options") + "metric: acc_mutual_info\n"
    rows = [{"question": f"{i}", "options": o, "colour": 0} for i, o in enumerate([["a", "b"], ["c", "d"], ["a", "b"]])]
    found = lay_out(task(tmp_path, own, [], rows), [0], [0])
    assert sorted(p.question.choices for p in found.prompts if p.shots is None) == [("a", "b"), ("c", "d")]
    assert len({prompt.key for prompt in found.prompts}) == 5


def test_limits(tmp_path: Path) -> None:
    one = task(tmp_path, COLOURS.replace("examples: examples.jsonl\n", ""), [], colours(9))
    assert len(lay_out(one, [0], [0], limit=4).test) == 4
    with pytest.raises(UsageError, match="the key examples is missing; need it, for 2 shots"):
        lay_out(one, [0, 2], [0])
    with pytest.raises(UsageError, match="has no rows"):
        lay_out(task(tmp_path, COLOURS, [], []), [0], [0])


def test_what_a_row_of_results_depends_on(tmp_path: Path) -> None:
    def content(more: str = "", **changed: str) -> list[object]:
        row = {"question": "sky", "colour": "blue", **changed}
        return [p.content for p in lay_out(task(tmp_path, COLOURS + more, [], [row]), [0], [0]).prompts]

    assert content() == content()
    contents = [content(), content("instruction: x\n"), content(question="sea"), content(colour="red")]
    assert all(a != b for i, a in enumerate(contents) for b in contents[:i])
