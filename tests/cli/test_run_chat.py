from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_models import TALK, chat_model
from cli.datasets import read_lines, write_lines

from outsize.cli.main import main

FEW = ["--no-gpu", "--max-new-tokens", "12"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(chat_model(tmp_path / "model"))


def test_run_asks_by_the_models_template(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", folder, "jift", "--chat", "--system", "mojanago -> MOJANAGO\ndish -> DISH", *FEW]) == 0
    assert capsys.readouterr().out.strip() == "JIFT"
    talk = tmp_path / "talk.json"
    for data in (TALK, {"messages": TALK}):
        talk.write_text(json.dumps(data))
        assert main(["run", folder, "--json-messages", str(talk), "--json", *FEW]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["text"].strip() == "JIFT"
        assert answer["prompt_tokens"] == 37


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["hello", "--system", "x"], "--chat"),
        (["hello", "--json-messages", "talk.json"], "two prompts"),
        (["--json-messages", "nowhere.json"], "cannot be read"),
        (["--json-messages", "broken.json"], "not JSON"),
        (["--json-messages", "talk.json", "--system", "x"], "two system messages"),
    ],
)
def test_what_makes_no_conversation_is_one_line(
    folder: str,
    more: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("talk.json").write_text(json.dumps(TALK))
    Path("broken.json").write_text("[")
    assert main(["run", folder, *more, *FEW]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert word in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_batch_takes_conversations(folder: str, tmp_path: Path) -> None:
    out, data = tmp_path / "out.jsonl", tmp_path / "d.jsonl"
    lines = [
        {"id": "talk", "messages": TALK},
        {"id": "text", "prompt": "mojanago -> MOJANAGO\ndish -> DISH\njift ->"},
        {"id": "neither"},
        {"id": "both", "messages": TALK, "prompt": "x"},
        {"id": "role", "messages": [{"role": "judge", "content": "x"}]},
    ]
    assert main(["batch", folder, str(write_lines(data, lines)), "--out", str(out), *FEW]) == 0
    rows = {row["id"]: row for row in read_lines(out)}
    assert rows["talk"]["text"].strip() == rows["text"]["text"].strip() == "JIFT"
    assert "'prompt' or 'messages'" in rows["neither"]["error"]
    assert "one of them" in rows["both"]["error"]
    assert "no role judge" in rows["role"]["error"]
