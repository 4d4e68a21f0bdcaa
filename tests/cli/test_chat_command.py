from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
from typing import Any

import pytest
from chat_models import DEMO, chat_model

from outsize.cli import command_chat
from outsize.cli.main import main

FEW = ["--no-gpu", "--max-new-tokens", "12", "--weight-limit", "ram=1MiB"]
SYSTEM = "mojanago -> MOJANAGO"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(chat_model(tmp_path_factory.mktemp("chat") / "model"))


def chat(monkeypatch: pytest.MonkeyPatch, folder: str, lines: list[str], *more: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", folder, "--system", SYSTEM, *FEW, *more])


def test_a_further_turn_computes_what_is_new(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, folder, ["dish", "jift", "/stats", "/quit", "never"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["DISH", "JIFT"]
    assert "of 37 tokens computed" in said.err
    assert chat(monkeypatch, folder, ["dish", "jift"], "--json") == 0
    talk = json.loads(capsys.readouterr().out)
    assert [message["content"].strip() for message in talk["messages"]] == [SYSTEM, "dish", "DISH", "jift", "JIFT"]
    first, second = talk["turns"]
    assert (first["prompt_tokens"], first["cached_tokens"]) == (26, 0)
    assert second["prompt_tokens"] == 37
    assert second["cached_tokens"] >= 26
    assert second["finish"] == "eos"


def test_commands(folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/stats", "/nothing", "dish", "/reset", "jift", "", "/help", "/system GLAI -> glai", "PDEYPIP"]
    assert chat(monkeypatch, folder, lines) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["DISH", "JIFT", "pdeypip"]
    assert "nothing was said yet" in said.err
    assert "there is no /nothing" in said.err
    assert said.err.count("/quit") >= 3


def test_a_talk_that_is_too_long_goes_on_after_a_reset(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, folder, ["a" * 300, "dish"], "--context", "64") == 0
    said = capsys.readouterr()
    assert said.out.split() == ["DISH"]
    assert "outsize: the conversation has" in said.err
    assert "/reset" in said.err


def test_a_model_without_a_template_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, str(DEMO), ["dish"]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_an_interrupt_ends_the_answer_and_not_the_talk(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    simple = queue.SimpleQueue

    class Interrupted:
        """Interrupts the third event of the first answer."""

        count = 0

        def __init__(self) -> None:
            self._events: queue.SimpleQueue[Any] = simple()
            self.put = self._events.put

        def get(self) -> Any:
            Interrupted.count += 1
            if Interrupted.count == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return self._events.get()

    talks: list[command_chat.Talk] = []
    converse = command_chat._converse
    monkeypatch.setattr(command_chat.queue, "SimpleQueue", Interrupted)
    monkeypatch.setattr(command_chat, "_converse", lambda talk: (talks.append(talk), converse(talk)))
    # The first answer is long, because it is drawn from nonsense.
    assert chat(monkeypatch, folder, ["dish", "jift"], "--temperature", "50", "--max-new-tokens", "150") == 0
    roles = [message["role"] for message in talks[0].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert talks[0].turns[0].finish == "interrupted"
    assert talks[0].turns[0].new_tokens < 150
    assert talks[0].turns[1].finish != "interrupted"


def test_a_terminal_is_left_alone_by_an_interrupt(folder: str) -> None:
    command = [sys.executable, "-m", "outsize", "chat", folder, *FEW]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("dish -> DISH\n")
        process.stdin.flush()
        process.stdout.readline()  # it has answered, and waits
        process.send_signal(signal.SIGINT)
        process.communicate("/quit\n", timeout=60)
        assert process.returncode == 0
