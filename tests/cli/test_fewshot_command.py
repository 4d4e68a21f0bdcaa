from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import DEMO, read_lines
from evals.fewshot.task_files import COLOURS, FREE, colours, write

from outsize.cli.main import main
from outsize.evals.fewshot import job
from outsize.evals.fewshot.accuracy import wilson

TASKS = Path(__file__).parents[2] / "examples" / "tasks"


def run(task: Path, *more: str) -> int:
    return main(["fewshot", str(DEMO), "--task", str(task), "--no-gpu", "--weight-limit", "ram=1MiB", *more])


def shares(shown: Mapping[str, Any]) -> dict[tuple[int, str], list[float]]:
    """The single draws of a table in JSON, by shots and metric."""
    return {(n["shots"], metric): found["draws"] for n in shown["table"] for metric, found in n["accuracy"].items()}


def by_hand(rows: list[dict[str, Any]], size: Any) -> dict[tuple[int, int | None], float]:
    """The share of rows whose right choice has most, by shots and seed; ``size``: what to divide by."""
    forms = {n: json.loads(line) for n, line in enumerate((TASKS / "plural.test.jsonl").read_text().splitlines(), 1)}
    right: dict[tuple[int, int | None], list[bool]] = {}
    for row in rows:
        if row["shots"] is not None:
            choices = forms[row["id"]]["forms"]
            weights = [l / size(c) for l, c in zip(row["logprobs"], choices, strict=True)]  # noqa: E741
            taken = choices[weights.index(max(weights))]
            right.setdefault((row["shots"], row["seed"]), []).append(taken == row["answer"])
    return {key: sum(values) / len(values) for key, values in right.items()}


def test_choices_whose_length_misleads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    task = TASKS / "plural.yaml"
    asked = ["--shots", "0,2", "--seeds", "0,1", "--limit", "12", "--out", str(out)]
    assert run(task, *asked, "--json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    shown = json.loads(said.out)
    assert (shown["schema"], shown["task"], shown["chance"], shown["majority"]) == (1, "plural", 0.25, None)
    assert (shown["rows"], shown["errors"], shown["sweeps"]) == (12 + 24 + 12, 0, 1)
    assert shown["disk_bytes"] > 1_000_000
    assert shown["predicted_seconds"] > 0

    rows = read_lines(out)
    assert len({(row["id"], row["shots"], row["seed"]) for row in rows}) == len(rows) == 48
    for row in rows:
        more = set() if row["shots"] is None else {"answer", "predicted"}
        assert set(row) == {"id", "shots", "seed", "logprobs", "tokens"} | more
    found, raw, norm = shares(shown), by_hand(rows, lambda choice: 1), by_hand(rows, len)
    assert found[0, "acc"] == [raw[0, None]]
    assert found[2, "acc"] == [raw[2, 0], raw[2, 1]]
    assert found[2, "acc_norm"] == [norm[2, 0], norm[2, 1]]
    two = shown["table"][1]["accuracy"]["acc_mutual_info"]
    assert two["mean"] > 0.6 > shown["table"][1]["accuracy"]["acc"]["mean"]
    assert (two["low"], two["high"]) == wilson(two["mean"], 12)

    # Again: no model is loaded, and the table is the same; other metrics are told from the same rows.
    assert run(task, *asked, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["table"], again["rows"], again["rows_before"], again["sweeps"]) == (shown["table"], 0, 48, 0)
    assert run(task, *asked, "--metric", "acc_mutual_info,acc_norm") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[2].split() == ["shots", "rows", "acc_mutual_info", "acc_norm"]
    assert json.loads(said.err.splitlines()[-1])["rows_before"] == 48
    before = out.read_bytes()
    for changed in (["--seeds", "0,2"], ["--shots", "0,4"], ["--limit", "11"], ["--metric", "acc"]):
        assert run(task, *asked, *changed) == 2
        assert "data changed" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_what_was_interrupted_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, left = tmp_path / "out.jsonl", [5]
    row = job._chosen

    def stopped(line: Any, result: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return row(line, result)

    asked = ["--shots", "1", "--limit", "20", "--out", str(out)]
    monkeypatch.setattr(job, "_chosen", stopped)
    assert run(TASKS / "count.yaml", *asked) == 130
    assert capsys.readouterr().out == ""
    assert len(read_lines(out)) == 5
    out.write_bytes(out.read_bytes()[:-7])  # and a torn line
    monkeypatch.setattr(job, "_chosen", row)
    assert run(TASKS / "count.yaml", *asked, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows_before"], shown["rows"], shown["balanced"]) == (4, 16, True)
    assert shares(shown)[1, "acc"][0] >= 0.9
    assert sorted(row["id"] for row in read_lines(out)) == list(range(1, 21))


def test_free_answers_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "out.jsonl", tmp_path / "plot.svg"
    asked = ["--shots", "2,0", "--seeds", "3,4", "--limit", "6", "--out", str(out), "--plot", str(plot)]
    assert run(TASKS / "no-vowels.yaml", *asked) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "no-vowels: 6 test rows; examples drawn for all rows, seeds 3, 4"
    assert [line.split()[:2] for line in lines[2:5]] == [["shots", "rows"], ["0", "6"], ["2", "6"]]
    assert "means over the draws" in lines[-1]
    assert json.loads(said.err.splitlines()[-1])["rows"] == 18
    assert plot.read_bytes().startswith(b"<?xml")
    rows = read_lines(out)
    assert all(set(row) == {"id", "shots", "seed", "answer", "predicted", "new_tokens", "finish"} for row in rows)
    assert sum(row["predicted"].strip() == row["answer"] for row in rows if row["shots"]) >= 10


def test_rows_that_cannot_be_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*colours(2), {"id": "long", "question": "x" * 300, "colour": 0}]
    task, out = write(tmp_path, COLOURS, colours(3, "known"), rows), tmp_path / "out.jsonl"
    assert run(task, "--shots", "1", "--out", str(out)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[3].split()[:2] == ["1", "2"]
    assert "count nowhere: 1 with 1 shots; the first: " in said[-1]
    assert "256 positions" in said[-1]
    assert run(task, "--shots", "1", "--out", str(out), "--retry-errors", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["errors"], shown["rows_before"]) == (1, 1, 2)
    assert (shown["table"][0]["rows"], shown["table"][0]["failed"]) == (2, 1)
    assert run(write(tmp_path, COLOURS, [], rows[2:]), "--shots", "0") == 1
    assert "not one row could be computed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shots", "0,-1"], ["--shots", "whole numbers"]),
        (["--shots", "few"], ["--shots", "whole numbers"]),
        (["--seeds", ""], ["--seeds", "whole numbers"]),
        (["--limit", "0"], ["--limit"]),
        (["--metric", "acc,f1"], ["no metric 'f1'", "acc_bytes"]),
        (["--out", "-"], ["--out FILE"]),
        (["--retry-errors"], ["--out FILE"]),
        (["--plot", "plot.jpg"], [".svg or .png"]),
        (["--plot", "nowhere/plot.svg"], ["no folder nowhere"]),
        (["--shots", "9"], ["examples.jsonl", "need 9, have 3"]),
        (["--shots", "6", "--balanced"], ["examples.jsonl", "as many of each choice for 6 shots"]),
        (["--task", "none.yaml"], ["none.yaml cannot be read"]),
        (["--out", "nowhere/out.jsonl"], ["cannot be written"]),
    ],
)
def test_usage(
    more: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(write(tmp_path, COLOURS, colours(3, "known"), colours(2)), "--shots", "0", *more) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


def test_usage_of_free_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write(tmp_path, FREE, [], [{"a": 1, "b": 1, "sum": 2}])
    assert run(task, "--balanced") == 2
    assert "for tasks with choices" in capsys.readouterr().err
    assert run(task, "--metric", "acc") == 2
    assert "exact_match" in capsys.readouterr().err
    assert main(["fewshot", str(DEMO)]) == 2
    assert "--task" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    task = write(tmp_path, COLOURS, [], colours(2))
    assert run(task, "--shots", "0", "--plot", str(tmp_path / "p.svg"), "--out", str(tmp_path / "out")) == 1
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
