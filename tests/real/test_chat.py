"""A real instruct model, which scripts/real_model.py makes a folder of: OUTSIZE_REAL_MODEL=FOLDER pytest -m real."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from outsize.cli.main import main

FOLDER = os.environ.get("OUTSIZE_REAL_MODEL", "")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER, reason="OUTSIZE_REAL_MODEL names no folder")]


@pytest.mark.parametrize("where", [[], ["--weight-limit", "ram=100MiB"]])
def test_a_talk_makes_sense_and_its_second_turn_is_quick(
    where: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = "Long ago, in a small town by the sea, there lived a fisher. " * 12
    lines = ["What is the capital of France?", f"{about}What did that person do for a living?", "And where?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", FOLDER, "--no-gpu", "--max-new-tokens", "40", "--json", *where]) == 0
    talk = json.loads(capsys.readouterr().out)
    answers = [message["content"] for message in talk["messages"] if message["role"] == "assistant"]
    assert "Paris" in answers[0]
    assert "fish" in answers[1].lower()
    first, second, third = talk["turns"]
    assert second["cached_tokens"] >= first["prompt_tokens"]
    assert third["prompt_tokens"] - third["cached_tokens"] < 30 < second["prompt_tokens"] - second["cached_tokens"]
