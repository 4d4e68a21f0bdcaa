from __future__ import annotations

import io
import sys

import pytest

from outsize.cli.dataset_bar import DatasetBar, remaining_s
from outsize.engine.request import DatasetProgress


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
