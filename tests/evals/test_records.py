from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from outsize.errors import OutsizeError, UsageError
from outsize.evals.records import digest, read_records

LINES = [
    {"id": "a", "prompt": "one", "more": 1},
    {"prompt": "two"},
    {"id": 7, "prompt": "three"},
]


def wrote(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_ids_are_theirs_or_the_number_of_the_line(tmp_path: Path) -> None:
    records = read_records(wrote(tmp_path / "d.jsonl", [LINES[0], "\n", *LINES[1:]]), wanted=["prompt"])
    assert [record.id for record in records] == ["a", 3, 7]
    assert [record.key for record in records] == ['"a"', "3", "7"]
    assert [record.fields for record in records] == [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "three"}]


def test_a_line_that_is_wrong_is_wrong_alone(tmp_path: Path) -> None:
    lines = ["{\n", "[1]\n", {"id": [1], "prompt": "p"}, {"id": True}, {"id": 6}, LINES[0], LINES[0], {"id": "7"}]
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n' + Path(wrote(path, [*lines, LINES[2]])).read_bytes())
    records = read_records(str(path), wanted=["prompt"])
    errors = {record.line: record.error for record in records if record.error}
    assert sorted(errors) == [1, 2, 3, 4, 5, 6, 8, 9]
    assert "not JSON" in errors[1]
    assert "not JSON" in errors[2]
    assert "not a JSON object" in errors[3]
    assert "an id must be" in errors[4]
    assert "lacks 'prompt'" in errors[6]
    assert "the id 'a' is that of line 7" in errors[8]
    assert len({record.key for record in records}) == len(records) == 10


def test_the_checksum_is_that_of_the_lines_and_not_of_their_order(tmp_path: Path) -> None:
    def of(*lines: Any) -> str:
        return digest(r.content for r in read_records(wrote(tmp_path / "d.jsonl", list(lines)), wanted=["prompt"]))

    named = [LINES[0], LINES[2]]
    assert of(*named) == of(*reversed(named)) == of({**LINES[0], "more": 2}, LINES[2])
    assert of(*named) != of(LINES[0])
    assert of(*named) != of({**LINES[0], "prompt": "other"}, LINES[2])
    assert of("{\n") != of("{{\n")


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    data = wrote(tmp_path / "d.jsonl", [{"text": "one"}])
    (record,) = read_records(data, wanted=["prompt"], columns={"prompt": "text"})
    assert record.fields == {"prompt": "one"}


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b'{"prompt": "p"}')))
    assert [record.id for record in read_records("-", wanted=["prompt"])] == [1]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(str(tmp_path / "none.jsonl"), wanted=["prompt"])


def test_a_file_of_which_less_comes_than_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1}\n' * 3)
    monkeypatch.setattr("outsize.evals.records._parse", lambda file: iter(file.readline, file.readline()))
    with pytest.raises(UsageError, match="20 of 30 bytes"):
        read_records(str(path))


def test_a_dataset_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library itself, which knows JSON, CSV and Parquet, splits and compression."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "test.csv").write_text("id,question\n7,one?\nb,two?\n")
    (folder / "train.csv").write_text("id,question\nc,three?\n")
    records = read_records(str(folder), wanted=["prompt"], columns={"prompt": "question"})
    assert [(record.id, dict(record.fields), record.error) for record in records] == [
        ("7", {"prompt": "one?"}, ""),
        ("b", {"prompt": "two?"}, ""),
    ]
    assert [record.id for record in read_records(str(folder), split="train")] == ["c"]
    with pytest.raises(OutsizeError, match="neither a file nor a dataset that can be had"):
        read_records(str(folder), split="nowhere")


def test_datasets_of_the_hub_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install"):
        read_records("someone/something", wanted=["prompt"])


def test_datasets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        if name == "nothing":
            raise FileNotFoundError("no such dataset\nand much more")
        return [{"prompt": "one"}, {"prompt": "two", "id": "b"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    records = read_records("someone/something", wanted=["prompt"], config="en", split="train")
    assert [record.id for record in records] == [1, "b"]
    assert asked == [("someone/something", "en", "train")]
    with pytest.raises(OutsizeError, match=r"\(no such dataset\)"):
        read_records("nothing", wanted=["prompt"])
