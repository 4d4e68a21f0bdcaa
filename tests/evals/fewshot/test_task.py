from __future__ import annotations

from pathlib import Path

import pytest
from evals.fewshot.task_files import COLOURS, FREE, write

from outsize.errors import UsageError
from outsize.evals.fewshot.metrics import Matching
from outsize.evals.fewshot.task import read_task


def test_what_is_not_said_is_as_in_the_harness(tmp_path: Path) -> None:
    task = read_task(write(tmp_path, COLOURS, [], []))
    assert (task.name, task.instruction, task.choices) == ("task", "", ("red", "green", "blue"))
    assert (task.target_delimiter, task.fewshot_delimiter) == (" ", "\n\n")
    assert (task.metrics, task.draw, task.balanced, task.unconditional) == (("acc", "acc_norm"), "fixed", False, "")
    assert (task.test, task.examples) == (tmp_path / "test.jsonl", tmp_path / "examples.jsonl")
    assert not task.free


def test_a_free_answer(tmp_path: Path) -> None:
    task = read_task(write(tmp_path, FREE, [], []))
    assert task.free
    assert (task.metrics, task.stop, task.max_new_tokens) == (("exact_match",), ("\n",), 64)
    more = FREE + "stop: [x, 'y']\nmax_new_tokens: 3\nignore_case: true\nstrip: false\n"
    task = read_task(write(tmp_path, more, [], []))
    assert (task.stop, task.max_new_tokens, task.matching) == (("x", "y"), 3, Matching(False, True, False))


def test_a_field_of_choices(tmp_path: Path) -> None:
    task = read_task(write(tmp_path, COLOURS.replace("[red, green, blue]", "options"), [], []))
    assert (task.choices, task.choices_field, task.free) == ((), "options", False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("template:", "templat:"), ["templat: there is no such key", "need template"]),
        (("answer: colour", ""), ["the key answer is missing"]),
        (("answer: colour", "answer: [a]"), ["answer", "is no text"]),
        (("test: test.jsonl", ""), ["the key test is missing"]),
        (("test: test.jsonl", "test: other.jsonl"), ["test: there is no file"]),
        (("test: test.jsonl", "test: test.txt"), ["neither .jsonl nor .csv"]),
        (("{question}", "question"), ["template: it names no field"]),
        (("{question}", "{question"), ["template: a brace at character 4"]),
        (("[red, green, blue]", "[yes, no]"), ["choices: true is no text", "quotes"]),
        (("[red, green, blue]", "[red]"), ["choices", "two different ones"]),
        (("[red, green, blue]", "[red, red]"), ["choices", "two different ones"]),
        (("[red, green, blue]", "[]"), ["choices: [] is no list of texts"]),
        (("answer: colour", "answer: colour\nmetric: f1"), ["no metric 'f1' for choices", "acc_mutual_info"]),
        (("answer: colour", "answer: colour\nmetric: exact_match"), ["no metric 'exact_match' for choices"]),
        (("answer: colour", "answer: colour\nstop: x"), ["stop: it is for tasks without choices"]),
        (("answer: colour", "answer: colour\nbalanced: 1"), ["balanced: 1 is neither true nor false"]),
        (("answer: colour", "answer: colour\ndraw: often"), ["draw: 'often'", "fixed or per_row"]),
        (("answer: colour", "answer: colour\nanswer: hue"), ["the key answer is there twice"]),
        (("answer: colour", "answer: colour\nfields: {other: x}"), ["fields", "names 'other'"]),
        (("answer: colour", 'answer: colour\ninstruction: "\\uD800"'), ["instruction", "is no text"]),
        (("answer: colour", "answer: colour\nfields: [other]"), ["fields", "no mapping"]),
        (("answer: colour", "answer: colour\n1: x"), ["a mapping of keys"]),
        (("answer: colour", "answer: [colour"), ["is not YAML"]),
        (("answer: colour", "answer: 2020-99-99"), ["is not YAML"]),
        (("answer: colour", "answer: !!python/object/apply:os.getcwd []"), ["is not YAML"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(change: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, COLOURS.replace(*change), [], [])
    with pytest.raises(UsageError) as raised:
        read_task(path)
    for word in [str(path), *words]:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("balanced: true", "for tasks with choices"),
        ("max_new_tokens: 0", "above 0"),
        ("metric: acc", "for free answers"),
    ],
)
def test_the_same_of_free_answers(more: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        read_task(write(tmp_path, f"{FREE}{more}\n", [], []))


def test_a_file_that_is_no_task(tmp_path: Path) -> None:
    for content, word in ((b"- a\n", "mapping of keys"), (b"", "mapping of keys"), (b"\xff", "not UTF-8")):
        (tmp_path / "t.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=word):
            read_task(tmp_path / "t.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_task(tmp_path / "none.yaml")
