from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.datasets import PROMPTS, batch_lines, read_lines, run, write_lines

from outsize.cli.command_batch import own_seed


def answers(path: Path) -> dict[str, str]:
    return {row["id"]: row["text"] for row in read_lines(path)}


def test_each_prompt_gets_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out.jsonl", write_lines(tmp_path / "d.jsonl", batch_lines(16))
    assert run("batch", data, out, "--max-new-tokens", "12", "--json") == 0
    rows = read_lines(out)
    assert len(rows) == 16
    right = {f"b{row['id']}": row["answer"].rstrip("\n") for row in PROMPTS[:16]}
    assert sum(row["text"] == right[row["id"]] for row in rows) >= 15
    for row in rows:
        assert set(row) == {"id", "text", "new_tokens", "finish"}
        assert row["new_tokens"] == len(row["text"])
        assert row["finish"] == "eos"
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 16
    assert 2 < said["sweeps"] <= 13
    assert said["disk_bytes"] > 0
    assert said["predicted_seconds"] > 0


def test_a_line_draws_the_same_alone_and_in_company(tmp_path: Path) -> None:
    sampling = ["--max-new-tokens", "8", "--temperature", "30", "--seed", "5"]
    both, alone, other = tmp_path / "both", tmp_path / "alone", tmp_path / "other"
    assert run("batch", write_lines(tmp_path / "d.jsonl", batch_lines(3)), both, *sampling) == 0
    assert run("batch", write_lines(tmp_path / "e.jsonl", batch_lines(3)[2:]), alone, *sampling) == 0
    assert answers(alone)["b2"] == answers(both)["b2"]
    assert run("batch", tmp_path / "e.jsonl", other, *sampling[:-1], "6") == 0
    assert answers(other) != answers(alone)
    assert run("batch", tmp_path / "e.jsonl", alone, *sampling[:-1], "6") == 2  # another setting, the same file


def test_stop_strings(tmp_path: Path) -> None:
    prompt = {"id": 1, "prompt": "cat -> CAT\nhouse -> HOUSE\nbird ->"}
    data, out = write_lines(tmp_path / "d.jsonl", [prompt]), tmp_path / "out"
    assert run("batch", data, out, "--stop", "RD", "--stop", r"\n") == 0
    (row,) = read_lines(out)
    assert (row["text"], row["finish"]) == (" BI", "stop")


def test_prompts_that_are_wrong_are_errors_of_their_own(tmp_path: Path) -> None:
    lines = [{"id": 1, "prompt": ["no text"]}, {"id": 2, "prompt": ""}, {"id": 3, "prompt": "a" * 300}]
    lines.append({"id": 4, "prompt": "\ud800"})
    data, out = write_lines(tmp_path / "d.jsonl", [*lines, *batch_lines(1)]), tmp_path / "out"
    assert run("batch", data, out, "--max-new-tokens", "12") == 0
    errors = {row["id"]: row.get("error", "") for row in read_lines(out)}
    assert "no text" in errors[1]
    assert "no text" in errors[4]
    assert "empty" in errors[2]
    assert "positions" in errors[3]
    assert errors["b0"] == ""


@pytest.mark.parametrize("more", [["--max-new-tokens", "0"], ["--top-k", "3"], ["--temperature", "0"]])
def test_usage(more: list[str], tmp_path: Path) -> None:
    assert run("batch", write_lines(tmp_path / "d.jsonl", batch_lines(1)), tmp_path / "out", *more) == 2


def test_seeds_of_ids_differ() -> None:
    assert len({own_seed(seed, key) for seed in (0, 1) for key in ("1", '"1"', "2")}) == 6
    assert own_seed(0, "1") == own_seed(0, "1") < 2**63
