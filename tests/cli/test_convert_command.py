from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest

from outsize.cli.main import main
from outsize.convert import checksums

DEMO = Path(str(resources.files("outsize"))) / "demo_model"
PROMPT = "dish -> DISH\nmojanago -> MOJANAGO\njift ->"


def test_convert_and_verify_say_where_and_how_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(DEMO), "--weights", "int4", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: ")
    assert "read" in said.out
    assert "converting" in said.err
    assert main(["convert", str(DEMO), "--weights", "int4", "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["folder"] == str(out)
    assert (answer["weights"], answer["source_bytes"]) == ("int4", 0)
    assert main(["convert", str(DEMO), "--weights", "int4", "--out", str(out)]) == 0
    assert "there already" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert "187 tensors" in capsys.readouterr().out
    assert main(["verify", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tensors"] == 187
    assert answer["bytes_per_s"] > 0


def test_a_damaged_tensor_is_exit_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["convert", str(DEMO), "--weights", "int8", "--out", str(out)])
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    capsys.readouterr()
    assert main(["verify", str(out)]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert "weight_shape is damaged" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["convert", str(DEMO)], 2, "--weights"),
        (["convert", str(DEMO), "--weights", "native"], 2, "native"),
        (["convert", str(DEMO), "--weights", "int4", "--discard-source"], 2, "folder of yours"),
        (["convert", "./nowhere", "--weights", "int4"], 1, "no such folder"),
        (["verify", str(DEMO)], 1, checksums.NAME),
        (["verify", "./nowhere"], 1, "no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(
    arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert word in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_run_converts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    command = ["run", str(folder), PROMPT, "--no-gpu", "--max-new-tokens", "12", "--weights", "int8"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.strip() == "JIFT"
    assert "converting" in said.err
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"].strip(), answer["weights"]) == ("JIFT", "int8")


def test_plan_never_converts(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(DEMO), "--weights", "int4", "--no-gpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["weights"] == "int4"
    assert not (own_cache / "converted").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["convert", str(DEMO), "--weights", "int4", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written" in capsys.readouterr().err
