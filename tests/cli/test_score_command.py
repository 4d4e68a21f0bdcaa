from __future__ import annotations

import io
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import DEMO, read_lines, run, score_lines, write_lines

from outsize.cli.main import main
from outsize.evals import results
from outsize.evals.results import Journal


@pytest.fixture(scope="module")
def references() -> dict[str, list[float]]:
    """Sums of log-probabilities, one forward pass of transformers for each choice."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    sums: dict[str, list[float]] = {}
    for line in score_lines(8):
        for choice in line["choices"]:
            before = len(tokenizer(line["context"])["input_ids"])
            ids = tokenizer(line["context"] + choice, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                logits = model(ids).logits.float().log_softmax(-1)[0]
            at = range(before, ids.shape[1])
            sums.setdefault(line["id"], []).append(sum(float(logits[i - 1, ids[0, i]]) for i in at))
    return sums


def test_each_line_gets_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], references: Any) -> None:
    out = tmp_path / "out.jsonl"
    lines = [*score_lines(8), {"context": "a ->", "choices": [" a\n"]}]
    assert run("score", write_lines(tmp_path / "d.jsonl", lines), out) == 0
    rows = {row["id"]: row for row in read_lines(out)}
    assert set(rows) == {line.get("id", 9) for line in lines}
    for line in score_lines(8):
        row = rows[line["id"]]
        assert set(row) == {"id", "logprobs", "tokens", "greedy", "best"}
        assert row["logprobs"] == pytest.approx(references[line["id"]], abs=0.3, rel=0.02)  # bfloat16
        assert row["tokens"] == [len(choice) for choice in line["choices"]]
        assert row["best"] == 1
    assert sum(rows[line["id"]]["greedy"][1] for line in score_lines(8)) >= 7
    said = capsys.readouterr()
    assert said.out == ""
    summary = json.loads(said.err.splitlines()[-1])
    assert summary["rows"] == 9
    assert summary["errors"] == 0
    assert summary["sweeps"] == 1
    assert summary["disk_bytes"] > 1_000_000
    assert summary["seconds"] > 0
    assert summary["predicted_seconds"] > 0


def test_lines_that_are_wrong_are_errors_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    wrong = [
        "{\n",
        {"id": "s0", "context": "twice", "choices": ["x"]},
        {"id": "no-context", "choices": ["x"]},
        {"id": "number", "context": 5, "choices": ["x"]},
        {"id": "no-choice", "context": "a", "choices": []},
        {"id": "empty", "context": "a", "choices": [""]},
        {"id": "half", "context": "half a character: \ud800", "choices": ["x"]},
        {"id": "long", "context": "a" * 300, "choices": ["x"]},
    ]
    assert run("score", write_lines(tmp_path / "d.jsonl", [*score_lines(2), *wrong]), out, "--json") == 0
    rows = read_lines(out)
    assert len(rows) == 10
    assert {row["id"] for row in rows if "error" not in row} == {"s0", "s1"}
    errors = {row["id"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {3, "s0", "no-context", "number", "no-choice", "empty", "half", "long"}
    assert "256 positions" in errors["long"]
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["rows"], said["errors"]) == (1, 10, 8)
    # They count as done, unless it is asked for them again.
    assert run("score", tmp_path / "d.jsonl", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 0
    assert run("score", tmp_path / "d.jsonl", out, "--json", "--retry-errors") == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 8
    assert sorted(map(str, read_lines(out))) == sorted(map(str, rows))


def test_only_what_is_missing_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", score_lines(8))
    assert run("score", data, out) == 0
    whole = out.read_bytes()
    capsys.readouterr()
    assert run("score", data, out) == 0  # and no model is loaded
    assert out.read_bytes() == whole
    again = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (again["rows"], again["rows_before"], again["sweeps"], again["disk_bytes"]) == (0, 8, 0, 0)
    out.write_bytes(whole[: len(whole) // 2])
    assert run("score", data, out) == 0
    summary = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert summary["rows"] + summary["rows_before"] == 8
    assert sorted(row["id"] for row in read_lines(out)) == sorted(line["id"] for line in score_lines(8))


def test_something_that_changed_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", score_lines(1))
    assert run("score", data, out) == 0
    before = out.read_bytes()

    def refused(word: str, model: Path, *more: str) -> None:
        capsys.readouterr()
        assert main(["score", str(model), str(data), "--out", str(out), "--no-gpu", *more]) == 2
        said = capsys.readouterr().err
        assert f"{word} changed" in said
        assert "another --out" in said
        assert out.read_bytes() == before

    other = Path(shutil.copytree(DEMO, tmp_path / "other"))
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-100] + bytes(100))
    refused("model", other)
    shutil.copytree(DEMO, other, dirs_exist_ok=True)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    refused("tokenizer", other)
    refused("model, weights", DEMO, "--weights", "int8")
    write_lines(data, [{**score_lines(1)[0], "choices": ["other"]}])
    refused("data", DEMO)
    write_lines(data, score_lines(2))
    refused("rows, data", DEMO)


def test_a_line_that_somebody_put_into_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", score_lines(1))
    assert run("score", data, out) == 0
    row = out.read_text()
    out.write_text(row + row)
    assert run("score", data, out) == 2
    assert "twice" in capsys.readouterr().err
    out.write_text(row + row.replace("s0", "s5"))
    assert run("score", data, out) == 2
    assert "not in the data" in capsys.readouterr().err


def test_standard_input_and_output(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps(line) + "\n" for line in score_lines(3))
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert run("score", "-", None) == 0
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert {row["id"] for row in rows} == {"s0", "s1", "s2"}


def test_a_file_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", score_lines(1))
    with Journal(out, {}):
        assert run("score", data, out) == 2
    assert "another process" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_then_the_rest_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", score_lines(4))
    write, left = results._write, [2]

    def full(file: int, line: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            write(file, line[:5])
            raise OSError(28, "No space left on device")
        write(file, line)

    monkeypatch.setattr(results, "_write", full)
    assert run("score", data, out, "--json") == 1
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1
    assert "the disk is full" in said.err
    assert len(read_lines(out)) == 2
    monkeypatch.setattr(results, "_write", write)
    assert run("score", data, out) == 0
    assert len({row["id"] for row in read_lines(out)}) == len(read_lines(out)) == 4


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--json"], "--out FILE"),
        (["--retry-errors"], "--out FILE"),
        (["--fields", "prompt=x", "--out", "o"], "--fields"),
        (["--out", "d.jsonl"], "the data itself"),
        (["--out", "o", "--context", "9999"], "positions"),
        (["--out", "nowhere/o"], "cannot be written"),
    ],
)
def test_usage(
    more: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "d.jsonl", score_lines(1))
    assert run("score", "d.jsonl", None, *more) == 2
    assert word in capsys.readouterr().err


def test_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(tmp_path / "d.jsonl", score_lines(1))
    assert run("score", data, tmp_path / "out", "--ram", "100MiB") == 3
    assert "does not fit" in capsys.readouterr().err


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", tmp_path / "none.jsonl", tmp_path / "out") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_dataset(tmp_path: Path) -> None:
    assert run("score", write_lines(tmp_path / "d.jsonl", []), tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == b""
