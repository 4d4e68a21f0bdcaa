from __future__ import annotations

import io
import sys

import pytest

from outsize.engine.request import DatasetProgress
from outsize.progress import DatasetBar, bars, remaining_s
from outsize.sizes import GIB


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_left_begins_as_predicted_and_ends_as_measured() -> None:
    assert remaining_s(0.0, 0.0, 100.0) == 100.0
    assert remaining_s(0.0, 30.0, 100.0) == 70.0
    assert 100 < remaining_s(0.1, 20.0, 100.0) < 180  # twice as slow as was thought, and this is little evidence
    assert remaining_s(0.5, 100.0, 100.0) == 100.0
    assert remaining_s(0.1, 150.0, 100.0) == pytest.approx(1350.0)  # over time: only the pace counts
    assert remaining_s(1.0, 150.0, 100.0) == 0


def test_the_bar_says_rows_sweeps_rate_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    moments = iter([0.0, 2.0, 4.0])
    bar = DatasetBar(10, 4.0, clock=lambda: next(moments))
    progress = DatasetProgress(done=5, rows=10, sweeps=1, tokens=1000, disk_bytes=0)
    assert bar.words(progress) == "1 sweep, 500 tokens/s, 00:02 left"
    bar.to(progress)
    bar.close()
    assert "5/10 rows" in sys.stderr.getvalue()
    late = DatasetBar(10, 8000.0, clock=lambda: 0.0)
    assert late.words(DatasetProgress(0, 10, 2, 0, 0)) == "2 sweeps, 0 tokens/s, 2:13:20 left"


def test_nothing_is_said_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = DatasetBar(10, 4.0)
    bar.to(DatasetProgress(5, 10, 1, 1000, 0))
    bar.close()
    assert sys.stderr.getvalue() == ""


def test_no_terminal_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as bar:
        advance = bar("loading")
        advance(GIB, 2 * GIB)
        advance(2 * GIB, 2 * GIB)
    assert capsys.readouterr().err.startswith("loading: 2.0 GiB in ")
    with bars() as bar:
        bar("nothing")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with bars() as bar:
        advance = bar("loading")
        advance(GIB // 2, GIB)
        advance(GIB, GIB)
    assert "100%" in terminal.getvalue()
