"""``outsize bench`` on the bundled model: what is measured is there, beside what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import DEMO

from outsize.cli import command_bench
from outsize.cli.main import main
from outsize.evals.benchmark import Case, Figure, Result, from_json, measure_apart

QUICK = ["--prompt", "16", "--tokens", "4", "--repeats", "1", "--no-gpu"]
RESULT = Result(
    Case("m", ram="1GiB"),
    Figure(1, 2.0, (1.0,)),
    Figure(512, 1.0, (0.5, 1.0, 2.0)),
    Figure(1, 0.02, (0.01, 0.02, 0.03), 0.015),
    Figure(4096, 4.0, (4.0,)),
    2 << 30,
    1 << 30,
)


def test_every_case_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(DEMO), "--ram", "2GiB,100MiB", *QUICK, "--json"]) == 0
    good, bad = json.loads(capsys.readouterr().out)["results"]
    for name, tokens in (("load", 1), ("prefill", 16), ("decode", 1), ("score", 128)):
        assert good[name]["tokens"] == tokens
        assert good[name]["predicted_s"] > 0
        assert all(seconds > 0 for seconds in good[name]["measured_s"])
    assert 0 < good["peak_bytes"] <= good["planned_bytes"] <= 2 << 30
    assert from_json(good).case.ram == "2GiB"
    assert "does not fit" in bad["error"]
    assert bad["load"] is None


def test_the_table_has_medians_spreads_predictions_and_shares() -> None:
    head, row, failed, foot = command_bench.lines([RESULT, Result(Case("m", "int8"), error="no; try: y")])
    assert head.split()[:2] == ["weights", "limit"]
    assert "1.00 s (2.00)" in row
    assert "512 256-1.02e+03 (512)" in row
    assert "75%" in row
    assert "1.0 GiB (at most 2.0 GiB)" in row
    assert failed.split()[-1] == "no"
    assert foot == "in brackets: predicted"


def test_results_become_a_picture(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        path = tmp_path / f"b.{suffix}"
        command_bench.picture([RESULT, Result(Case("m"), error="x")], path).savefig(path)
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--weights", "int3"], "weights 'int3'"),
        (["--tokens", "1"], "--tokens 1"),
        (["--repeats", "0"], "--repeats 0"),
        (["--ram", "much"], "not a size"),
        (["--plot", "b.txt"], "cannot plot"),
    ],
)
def test_what_makes_no_sense(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(DEMO), *words]) == 2
    assert what in capsys.readouterr().err


def test_what_goes_wrong_in_the_process_is_the_results_error(tmp_path: Path) -> None:
    result: Any = measure_apart(Case(str(tmp_path)))
    assert "config.json" in result.error
    assert result.load is None
