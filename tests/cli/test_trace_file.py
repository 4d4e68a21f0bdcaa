"""Traces of runs: everything that was done, where a browser can read it, and the last sweep as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.datasets import DEMO, score_lines, write_lines

from outsize.cli import trace_file
from outsize.cli.main import main
from outsize.store import trace as traces
from outsize.store.trace import Span, Trace

SPILLED = ["--no-gpu", "--weight-limit", "ram=1MiB"]


def a_trace() -> Trace:
    trace = Trace(sweeps=[10.0, 11.0, 12.0])
    trace.spans.extend(
        [
            Span("read", "layers.0", "reader", 10.0, 10.5, 1000),
            Span("wait", "layers.0", "main", 10.2, 10.5),
            Span("compute", "layers.0", "main", 10.5, 10.9),
            Span("read", "layers.0", "reader", 11.0, 11.5, 1000),
        ]
    )
    return trace


def test_a_chrome_trace_has_threads_spans_sweeps_and_the_drives_rate() -> None:
    events = trace_file.chrome(a_trace())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["reader", "main"]
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["cat"], e["ts"], e["dur"]) for e in spans][1] == ("wait", pytest.approx(2e5), pytest.approx(3e5))
    assert spans[0]["args"] == {"bytes": 1000}
    assert [e["ts"] for e in events if e["ph"] == "i"] == pytest.approx([0, 1e6, 2e6])
    assert len([e for e in events if e["ph"] == "C"]) > 1


def test_rates_bring_every_byte_once() -> None:
    rates = trace_file.read_rates(list(a_trace().spans))
    step = rates[1][0] - rates[0][0]
    assert sum(rate for _, rate in rates) * step == pytest.approx(2000)
    assert rates[-1][1] == 0
    assert trace_file.read_rates([]) == []


def test_the_last_whole_sweep_is_shown_or_all_there_is() -> None:
    assert trace_file.last_sweep(a_trace()) == (11.0, 12.0)
    short = a_trace()
    short.sweeps[:] = [10.0]
    assert trace_file.last_sweep(short) == (10.0, 11.5)
    assert trace_file.last_sweep(Trace()) == (0.0, 0.0)


def test_a_trace_keeps_the_latest_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Trace().spans.maxlen == traces.MOST_SPANS
    trace = Trace()
    with pytest.raises(KeyError), trace.span("bind", "x", 3):
        raise KeyError
    assert [(span.kind, span.name, span.nbytes) for span in trace.spans] == [("bind", "x", 3)]


@pytest.mark.parametrize("suffix", ["json", "svg", "png"])
def test_run_writes_what_it_did(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"t.{suffix}"
    assert main(["run", str(DEMO), "dish ->", "--max-new-tokens", "3", *SPILLED, "--trace", str(path)]) == 0
    if suffix == "json":
        events = json.loads(path.read_text())["traceEvents"]
        kinds = {event["cat"] for event in events if event["ph"] == "X"}
        assert {"read", "bind", "compute"} <= kinds
        assert len([event for event in events if event["ph"] == "i"]) == 3
        read = sum(event["args"]["bytes"] for event in events if event.get("cat") == "read")
        assert read >= (DEMO / "model.safetensors").stat().st_size * 0.9
    else:
        assert path.stat().st_size > 1000


def test_a_dataset_writes_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path = write_lines(tmp_path / "data.jsonl", score_lines(4)), tmp_path / "t.json"
    out = ["--out", str(tmp_path / "out.jsonl")]
    assert main(["score", str(DEMO), str(data), *out, *SPILLED, "--trace", str(path)]) == 0
    events = json.loads(path.read_text())["traceEvents"]
    assert len([event for event in events if event["ph"] == "i"]) == 1  # all rows in one sweep
    assert [event for event in events if event.get("cat") == "compute"]


def test_a_file_that_cannot_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(DEMO), "dish ->", "--trace", str(tmp_path / "t.txt")]) == 2
    assert "ends in .json, .svg, .png" in capsys.readouterr().err
    assert main(["run", str(DEMO), "x", "--max-new-tokens", "1", "--trace", str(tmp_path / "no" / "t.json")]) == 1
    assert "cannot write" in capsys.readouterr().err
