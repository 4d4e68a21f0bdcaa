"""``outsize bench``: load, prefill, decode and scoring of a model, measured beside what was predicted."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outsize.cli import arguments
from outsize.cli.plot import figure_class, save
from outsize.cli.table import table
from outsize.errors import DoesNotFit, OutsizeError, UsageError
from outsize.evals.benchmark import Case, Figure, Result, measure_apart, prepared
from outsize.planner.plan import WEIGHTS
from outsize.progress import bars, note
from outsize.sizes import format_size, parse_size

WORDS = ("prefill", "decode", "score")
COLOURS = {"measured": "#4878a8", "predicted": "#d0a040"}
INK = "#808080"  # legible on white and on black


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("--weights", default="native", metavar="W[,W...]", help="weight formats (default: native)")
    parser.add_argument("--ram", metavar="SIZE[,SIZE...]", help="memory limits, each measured (default: none)")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of the prompt (default: 512)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="new tokens (default: 128)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of all but the load (default: 3)")
    parser.add_argument("--no-gpu", action="store_true", help="use no GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture as .svg or .png")


def run(args: argparse.Namespace) -> int:
    if args.plot is not None:
        figure_class(args.plot)  # before minutes of measuring
    results = []
    for case in cases(args):
        limit = f" in {case.ram}" if case.ram else ""
        note(f"{case.weights}{limit}: {case.prompt} tokens, {case.tokens} more, {case.repeats} times")
        results.append(measured(case, quiet=args.json))
        if results[-1].error:
            note(f"outsize: {results[-1].error}")
    if args.json:
        print(json.dumps({"schema": 1, "results": [asdict(result) for result in results]}))
    else:
        print("\n".join(lines(results)))
    if args.plot is not None:
        save(picture(results, args.plot), args.plot)
    return 0 if any(not result.error for result in results) else 1


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Every format under every limit. Raises UsageError for what makes no sense."""
    formats = [part.strip() for part in args.weights.split(",")]
    if unknown := [name for name in formats if name not in WEIGHTS]:
        raise UsageError(f"weights {unknown[0]!r}", need="some of " + ", ".join(WEIGHTS))
    for name in ("prompt", "tokens", "batch", "repeats"):
        least = 2 if name == "tokens" else 1
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)}", need=f"at least {least}")
    limits = [None] if args.ram is None else [part.strip() for part in args.ram.split(",")]
    for limit in limits:
        _ = limit and parse_size(limit)
        for weights in formats:
            yield Case(args.model, weights, limit, args.prompt, args.tokens, args.batch, args.repeats, args.no_gpu,
                       args.revision)  # fmt: skip


def measured(case: Case, *, quiet: bool) -> Result:
    """A case in a process of its own, once what it needs is there; what does not fit is a result too."""
    try:
        with bars(quiet=quiet) as bar:
            opening = prepared(case, on_download=bar("downloading"), on_convert=bar("converting"))
    except DoesNotFit as error:
        return Result(case, error=str(error))
    if not opening.plan.fits:
        return Result(case, error=f"does not fit; {'; '.join(opening.plan.remedies)}")
    return measure_apart(case)


def lines(results: Sequence[Result]) -> list[str]:
    """A row for each case: medians and their spread, predictions in brackets, and the share of what physics allows."""
    rows: list[Sequence[str]] = [
        ("weights", "limit", "first token", "prefill tokens/s", "decode tokens/s", "of the limit", "scored tokens/s",
         "memory")
    ]  # fmt: skip
    for result in results:
        case = result.case
        if result.error or result.load is None or result.decode is None:
            rows.append((case.weights, case.ram or "-", "-", "-", "-", "-", "-", result.error.partition(";")[0]))
            continue
        first = f"{statistics.median(result.load.measured_s):.2f} s ({result.load.predicted_s:.2f})"
        share = result.decode.limit_s / statistics.median(result.decode.measured_s)
        memory = f"{format_size(result.peak_bytes)} (at most {format_size(result.planned_bytes)})"
        rows.append(
            (case.weights, case.ram or "-", first, rate(result.prefill), rate(result.decode), f"{share:.0%}",
             rate(result.score), memory)
        )  # fmt: skip
    return [*table(rows), "in brackets: predicted"]


def rate(figure: Figure | None) -> str:
    """Tokens per second, their spread where there are several, and what was predicted."""
    if figure is None:
        return "-"
    rates = sorted(figure.tokens / seconds for seconds in figure.measured_s)
    spread = f" {rates[0]:.3g}-{rates[-1]:.3g}" if len(rates) > 1 else ""
    return f"{statistics.median(rates):.3g}{spread} ({figure.tokens / figure.predicted_s:.3g})"


def picture(results: Sequence[Result], path: Path) -> Any:
    """A panel for each thing that was measured: bars of tokens per second, measured and predicted, and the limit."""
    good = [result for result in results if not result.error]
    if not good:
        raise OutsizeError("there is nothing to draw: no case was measured")
    figure = figure_class(path)(figsize=(10, 1.4 + 0.5 * len(good)), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, len(WORDS), squeeze=False)[0]
    for word, axes in zip(WORDS, panels, strict=True):
        axes.patch.set_alpha(0)
        for place, result in enumerate(good):
            found: Figure = getattr(result, word)
            seconds = {"measured": statistics.median(found.measured_s), "predicted": found.predicted_s}
            for row, (name, value) in enumerate(seconds.items()):
                label = name if not place else None
                axes.barh(place + 0.4 * row - 0.2, found.tokens / value, 0.36, color=COLOURS[name], label=label)
            if found.limit_s:
                axes.plot([found.tokens / found.limit_s] * 2, [place - 0.4, place + 0.4], color="#c8553d", linewidth=2,
                          label=None if place else "what the memory and the drive allow")  # fmt: skip
        names = [f"{result.case.weights}{f', {result.case.ram}' if result.case.ram else ''}" for result in good]
        axes.set_yticks(range(len(good)), names if word == WORDS[0] else [""] * len(good))
        axes.invert_yaxis()
        axes.set_title(f"{word}, tokens/s", fontsize=9, color=INK)
        axes.tick_params(colors=INK, labelcolor=INK)
        for side in axes.spines.values():
            side.set_color(INK)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False, labelcolor=INK)
    return figure
