from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from outsize import progress
from outsize.cli.command_run import read_prompt
from outsize.cli.main import main
from outsize.engine.text import Settings
from outsize.errors import ModelNotFound, UsageError
from outsize.evals.token_counter import TokenCounter
from outsize.planner.plan import WEIGHTS

PROMPT = "dish -> DISH\nmojanago -> MOJANAGO\njift ->"
DEMO = Path(str(resources.files("outsize"))) / "demo_model"


def run(*more: str) -> int:
    return main(["run", str(DEMO), PROMPT, "--no-gpu", "--max-new-tokens", "12", *more])


def test_text_goes_to_stdout_and_everything_else_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--weight-limit", "ram=1MiB") == 0
    said = capsys.readouterr()
    assert said.out.strip() == "JIFT"
    assert "8 blocks" in said.err
    assert "disk: " in said.err
    assert "predicted" in said.err


def test_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--weight-limit", "ram=1MiB") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == 1
    assert answer["text"].strip() == "JIFT"
    assert answer["prompt_tokens"] > 20
    assert answer["new_tokens"] == 6  # a blank, four letters, a line's end
    assert answer["weights"] in WEIGHTS
    assert answer["disk_bytes_per_token"] > 1_000_000
    assert answer["peak_ram_bytes"] > 0
    assert set(answer["predicted"]) == {"first_token_s", "token_s"}
    assert answer["first_token_s"] > 0
    assert answer["token_s"] > 0


def test_options_may_stand_between_the_model_and_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(DEMO), "--no-gpu", "--max-new-tokens", "12", PROMPT]) == 0
    assert capsys.readouterr().out.strip() == "JIFT"


def test_sampling_with_a_seed_repeats_itself(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        assert run("--json", "--temperature", "3", "--seed", "7") == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_beams(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--beams", "3") == 0
    assert json.loads(capsys.readouterr().out)["text"].strip() == "JIFT"


def test_the_prompt_comes_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt"
    file.write_text(PROMPT)
    assert read_prompt(None, file) == PROMPT
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert read_prompt(None, None) == PROMPT
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert read_prompt("-", None) == PROMPT
    with pytest.raises(UsageError, match="two prompts"):
        read_prompt(PROMPT, file)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UsageError, match="empty"):
        read_prompt(None, None)


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        (["--max-new-tokens", "0"], 2, "at least 1"),
        (["--temperature", "-1"], 2, "temperature"),
        (["--top-k", "5"], 2, "sampling"),
        (["--beams", "0"], 2, "beams"),
        (["--weights", "int3"], 2, "int3"),
        (["--weight-limit", "gpu7=1GiB"], 2, "gpu7"),
        (["--prompt-file", "/nowhere"], 2, "two prompts"),
        (["--context", "100000"], 2, "positions"),
        (["--ram", "100MiB"], 3, "does not fit"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(
    more: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*more) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert word in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_truncated_model_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(DEMO, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    assert main(["run", str(folder), PROMPT]) == 4
    assert "model.safetensors" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_cannot_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(DEMO, folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelNotFound, match="tokenizer"):
        TokenCounter(folder)
    assert main(["run", str(folder), PROMPT]) == 1
    assert "tokenizer" in capsys.readouterr().err


def test_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outsize", "run", str(DEMO), PROMPT, "--max-new-tokens", "200", "--no-gpu"]
    options = ["--temperature", "50", "--weight-limit", "ram=0", "--context", "256"]  # long, and nonsense
    process = subprocess.Popen(
        command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it has begun to answer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was through before the signal came
        assert process.returncode == 130
        assert said.decode().strip().endswith("outsize: interrupted")


def test_settings_are_greedy_unless_asked() -> None:
    assert Settings().temperature is None
    with pytest.raises(UsageError):
        Settings(top_p=0.5)


def test_the_map_of_layers_in_plain_letters() -> None:
    import outsize

    plan = outsize.plan(str(DEMO), weights="native", no_gpu=True, weight_limits={"ram": "1MiB"})
    from outsize.models.resolve import resolve_spec

    line = progress.layers(resolve_spec(str(DEMO)), plan, unicode=False)
    assert "d disk" in line
    assert "R ram" in line


def test_the_demo_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "7 of 7 answers are right" in said
    assert "predicted" in said
    assert main(["demo", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["right"] == len(answer["answers"]) == 7


def test_planning_says_how_good_the_last_predictions_were(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    capsys.readouterr()
    assert main(["plan", str(DEMO), "--no-gpu"]) == 0
    assert re.search(r"so far: first token [\d.]+ times \(1 runs\), token", capsys.readouterr().out)
