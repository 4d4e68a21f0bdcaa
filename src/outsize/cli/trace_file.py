"""``--trace FILE``: where a run's time went, as a Chrome trace or as a picture of its last sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outsize.cli.plot import figure_class, save
from outsize.errors import OutsizeError, UsageError
from outsize.files import write_whole
from outsize.store.trace import Span, Trace

SUFFIXES = (".json", ".svg", ".png")
COLOURS = {"read": "#4878a8", "wait": "#c8553d", "bind": "#9868a8", "compute": "#6aa56a"}
WORDS = {"read": "reading", "wait": "waiting for the drive", "bind": "bringing to the module", "compute": "computing"}
INK = "#808080"  # legible on white and on black
COUNTER_S = 0.05  # between two values of the counter


def check(path: Path | None) -> Trace | None:
    """A trace to record where a file was asked for. Raises UsageError for a suffix that says nothing."""
    if path is None:
        return None
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot write a trace to {path.name!r}", need=f"a name that ends in {', '.join(SUFFIXES)}")
    return Trace()


def write(trace: Trace | None, path: Path | None) -> None:
    """Writes what was recorded. Raises OutsizeError where it cannot."""
    if trace is None or path is None:
        return
    if path.suffix.lower() != ".json":
        save(picture(trace, path), path)
        return
    try:
        write_whole(path, json.dumps(chrome(trace)))
    except OSError as error:
        raise OutsizeError(f"cannot write {path}: {error.strerror}") from error


def chrome(trace: Trace) -> dict[str, Any]:
    """The Trace Event Format of chrome://tracing and ui.perfetto.dev: microseconds from the first span on."""
    spans = list(trace.spans)
    zero = min((span.began for span in spans), default=0.0)
    threads = {name: number for number, name in enumerate(dict.fromkeys(span.thread for span in spans), start=1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in threads.items()
    ]
    for span in spans:
        event = {
            "ph": "X",
            "pid": 1,
            "tid": threads[span.thread],
            "cat": span.kind,
            "name": f"{WORDS[span.kind]}: {span.name}",
            "ts": (span.began - zero) * 1e6,
            "dur": (span.ended - span.began) * 1e6,
        }
        events.append(event | ({"args": {"bytes": span.nbytes}} if span.nbytes else {}))
    events += [
        {"ph": "i", "pid": 1, "tid": 1, "s": "p", "name": "sweep", "ts": (at - zero) * 1e6}
        for at in trace.sweeps
        if at >= zero
    ]
    for at, rate in read_rates(spans):
        events.append(
            {"ph": "C", "pid": 1, "name": "drive, GB/s", "ts": (at - zero) * 1e6, "args": {"GB/s": rate / 1e9}}
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def read_rates(spans: list[Span]) -> list[tuple[float, float]]:
    """Bytes per second from the drive, as time goes on: what each read brought is spread over its seconds."""
    reads = [span for span in spans if span.kind == "read"]
    if not reads:
        return []
    zero, end = min(span.began for span in reads), max(span.ended for span in reads)
    step = max(COUNTER_S, (end - zero) / 10_000)
    sums = [0.0] * (int((end - zero) / step) + 1)
    for span in reads:
        first, last = int((span.began - zero) / step), int((span.ended - zero) / step)
        for place in range(first, last + 1):
            sums[place] += span.nbytes / (last - first + 1)
    return [(zero + place * step, total / step) for place, total in enumerate(sums)] + [(end, 0.0)]


def last_sweep(trace: Trace) -> tuple[float, float]:
    """From the beginning of the last sweep that another followed to its end; all there is where there is no such."""
    if len(trace.sweeps) >= 2:
        return trace.sweeps[-2], trace.sweeps[-1]
    return min((s.began for s in trace.spans), default=0.0), max((s.ended for s in trace.spans), default=0.0)


def picture(trace: Trace, path: Path) -> Any:
    """A row for the drive, one for what the computing thread waits for and binds, and one for what it computes."""
    began, ended = last_sweep(trace)
    inside = [span for span in trace.spans if span.ended > began and span.began < ended]
    figure = figure_class(path)(figsize=(10, 2.6), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    rows = (("drive", ("read",)), ("waiting,\nbringing", ("wait", "bind")), ("computing", ("compute",)))
    for place, (_, kinds) in enumerate(rows):
        for kind in kinds:
            bars = [
                (max(s.began, began) - began, min(s.ended, ended) - max(s.began, began))
                for s in inside
                if s.kind == kind
            ]
            axes.broken_barh(bars, (place - 0.35, 0.7), facecolors=COLOURS[kind], label=WORDS[kind], linewidth=0)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, ended - began)
    axes.set_xlabel("seconds of the last sweep", color=INK)
    axes.tick_params(colors=INK, labelcolor=INK)
    for side in axes.spines.values():
        side.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(WORDS), fontsize=8, frameon=False, labelcolor=INK)
    return figure
