from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from outsize.machine import history
from outsize.machine.history import Accuracy, accuracy, history_path, remember
from outsize.machine.profile import Identity

WHO = Identity("box", "A Processor", 4, "torch 2")


def test_the_median_of_how_far_predictions_were_off(tmp_path: Path) -> None:
    path = history_path({"OUTSIZE_CACHE": str(tmp_path / "new")})
    assert accuracy(path, WHO) == {}
    for measured in (1.0, 0.5, 1.25):
        remember(path, WHO, "m", "native", {"token": (1.0, measured), "first token": (2.0, 2.0)})
    remember(path, replace(WHO, software="torch 3"), "m", "native", {"token": (1.0, 9.0)})
    found = accuracy(path, WHO)
    assert found["token"] == Accuracy(3, pytest.approx(1.25))
    assert found["first token"] == Accuracy(3, pytest.approx(1.0))


def test_the_latest_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_RUNS", 2)
    for measured in (5.0, 1.0, 1.0):
        remember(tmp_path / "h", WHO, "m", "int8", {"token": (1.0, measured)})
    assert accuracy(tmp_path / "h", WHO)["token"] == Accuracy(2, pytest.approx(1.0))


def test_lines_that_are_none_and_figures_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "h"
    path.write_text('{"machine": 3}\n[]\nnonsense\n{"seconds": {}}\n')
    for wrong in ((0.0, 1.0), (1.0, 0.0), (1.0,)):
        remember(path, WHO, "m", "native", {"token": wrong})  # type: ignore[dict-item]
    remember(path, WHO, "m", "native", {"token": (1.0, 2.0)})
    assert accuracy(path, WHO)["token"] == Accuracy(1, pytest.approx(2.0))
    path.write_bytes(b"\xff")
    assert accuracy(path, WHO) == {}


def test_the_older_half_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_BYTES", 1000)
    for _ in range(50):
        remember(tmp_path / "h", WHO, "m", "native", {"token": (1.0, 1.0)})
    assert (tmp_path / "h").stat().st_size < 1500
    assert accuracy(tmp_path / "h", WHO)["token"].runs >= 2


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember(tmp_path / "file" / "h", WHO, "m", "native", {"token": (1.0, 1.0)})
