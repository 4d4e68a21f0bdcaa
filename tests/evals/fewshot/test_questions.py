from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evals.fewshot.task_files import COLOURS, FREE, task

from outsize.errors import UsageError
from outsize.evals.fewshot.questions import Question, read_questions

OWN = COLOURS.replace("[red, green, blue]", "options")


def read(folder: Path, text: str, *rows: Any) -> list[Question]:
    one = task(folder, text, [], list(rows))
    return read_questions(one.test, one)


def test_an_answer_is_a_text_or_an_index(tmp_path: Path) -> None:
    found = read(tmp_path, COLOURS, {"question": "sky", "colour": "blue"}, {"id": "x", "question": 7, "colour": 0})
    assert found == [
        Question(1, "Q: sky", ("blue",), ("red", "green", "blue")),
        Question("x", "Q: 7", ("red",), ("red", "green", "blue")),
    ]
    assert [question.gold for question in found] == [2, 0]


def test_choices_of_each_row(tmp_path: Path) -> None:
    rows = [
        {"question": "?", "options": ["1", "0"], "colour": "0"},
        {"question": "?", "options": ["a", "b"], "colour": 0},
    ]
    assert [(q.choices, q.gold) for q in read(tmp_path, OWN, *rows)] == [(("1", "0"), 1), (("a", "b"), 0)]


def test_free_answers(tmp_path: Path) -> None:
    found = read(tmp_path, FREE, {"a": 1, "b": 2.5, "sum": 3.5}, {"a": "{b}", "b": "two", "sum": ["3", "three"]})
    assert [(q.text, q.answers) for q in found] == [("1 plus 2.5 is", ("3.5",)), ("{b} plus two is", ("3", "three"))]


def test_other_names(tmp_path: Path) -> None:
    text = COLOURS + "fields: {question: Text, colour: Label}\n"
    (found,) = read(tmp_path, text, {"Text": "grass", "Label": "green", "question": "no"})
    assert (found.text, found.answers) == ("Q: grass", ("green",))


def test_csv(tmp_path: Path) -> None:
    one = task(tmp_path, COLOURS, [], [])
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffid,question,colour\na,"one, ""two""\nthree",red\n'.encode())
    assert read_questions(path, one) == [Question("a", 'Q: one, "two"\nthree', ("red",), ("red", "green", "blue"))]
    path.write_text("question,colour\nx,red\n")
    assert read_questions(path, one)[0].id == 2
    for broken, word in (("question,colour\nx\n", "as many values"), ("question,colour\nx,red,y\n", "as many values")):
        path.write_text(broken)
        with pytest.raises(UsageError, match=f"line 2: .*{word}"):
            read_questions(path, one)
    path.write_bytes(b"question,colour\n\xff,red\n")
    with pytest.raises(UsageError, match="as CSV"):
        read_questions(path, one)


@pytest.mark.parametrize(
    ("text", "row", "word"),
    [
        (COLOURS, {"colour": 1}, "lacks 'question'"),
        (COLOURS, {"question": "?"}, "lacks 'colour'"),
        (COLOURS, {"question": None, "colour": 1}, "'question' is neither a text nor a number"),
        (COLOURS, {"question": True, "colour": 1}, "'question' is neither a text nor a number"),
        (COLOURS, {"question": "?", "colour": "pink"}, "'pink'|\"pink\""),
        (COLOURS, {"question": "?", "colour": 3}, "none of the choices"),
        (COLOURS, {"question": "?", "colour": -1}, "none of the choices"),
        (COLOURS, {"question": "?", "colour": True}, "none of the choices"),
        (OWN, {"question": "?", "options": "ab", "colour": 0}, "no list of texts"),
        (OWN, {"question": "?", "options": ["a", 1], "colour": 0}, "no list of texts"),
        (OWN, {"question": "?", "options": ["a", "a"], "colour": 0}, "two different"),
        (COLOURS, {"question": "\ud800", "colour": 1}, "'question' is neither a text nor a number"),
        (OWN, {"question": "?", "options": ["a", "\ud800"], "colour": 0}, "no list of texts"),
        (FREE, {"a": 1, "b": 1, "sum": []}, "neither a text nor a number"),
        (FREE, {"a": 1, "b": 1, "sum": None}, "neither a text nor a number"),
        (COLOURS, [], "not a JSON object"),
    ],
)
def test_a_row_that_is_not_as_the_task_says(text: str, row: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word) as raised:
        read(tmp_path, text, row)
    assert f"{tmp_path / 'test.jsonl'}: line 1" in str(raised.value)


def test_an_id_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2: the id 2 is that of line 1"):
        read(tmp_path, COLOURS, {"id": 2, "question": "?", "colour": 0}, {"question": "?", "colour": 0})
