"""The accuracy of a few-shot experiment: as text, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outsize.cli import plot
from outsize.cli.table import table as text_table
from outsize.evals.fewshot.accuracy import Accuracy, Table
from outsize.evals.fewshot.experiment import Experiment

COLOURS = ("#4878a8", "#d0a040", "#6aa56a", "#9868a8", "#b05050")


def as_text(experiment: Experiment, table: Table) -> list[str]:
    """A line about the task, the table, and what its intervals cover."""
    metrics = experiment.task.metrics
    shown = [("shots", "rows", *metrics)]
    shown += [(str(n.shots), str(n.rows), *(_share(n.accuracy.get(m)) for m in metrics)) for n in table.lines]
    ranges = [n for n in table.lines if any(len(found.draws) > 1 for found in n.accuracy.values())]
    shown += [(str(n.shots), str(n.rows), *(_range(n.accuracy[m]) for m in metrics)) for n in ranges]
    rows = text_table(shown, "right")
    whole = len(table.lines) + 1
    if ranges:
        rows = [*rows[:whole], "single draws, lowest and highest:", *rows[whole:]]
    return [_about(experiment, table), "", *rows, "", *_notes(experiment, table)]


def as_json(experiment: Experiment, table: Table) -> dict[str, Any]:
    task = experiment.task
    return {
        "task": task.name,
        "metrics": list(task.metrics),
        "seeds": list(experiment.seeds),
        "draw": task.draw,
        "balanced": task.balanced,
        "test_rows": len(experiment.test),
        "examples_left_out": experiment.left_out,
        "chance": table.chance,
        "majority": table.majority,
        "table": [asdict(line) for line in table.lines],
    }


def save_plot(experiment: Experiment, table: Table, model: str, path: Path) -> None:
    """Write accuracy against shots, with intervals, as SVG or PNG. Raises as ``plot.figure_class`` and ``save``."""
    figure = plot.figure_class(path)(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    lines = [line for line in table.lines if line.rows]
    places = range(len(lines))
    metrics = experiment.task.metrics
    for number, metric in enumerate(metrics):
        found = [line.accuracy[metric] for line in lines]
        beside = (number - (len(metrics) - 1) / 2) * 0.06  # so that intervals do not hide each other
        below, above = [100 * (a.mean - a.low) for a in found], [100 * (a.high - a.mean) for a in found]
        axis.errorbar(
            [place + beside for place in places],
            [100 * a.mean for a in found],
            yerr=[[max(size, 0.0) for size in below], [max(size, 0.0) for size in above]],
            color=COLOURS[number],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=metric,
        )
    if table.chance is not None:
        axis.axhline(100 * table.chance, color="#909090", linewidth=0.8, linestyle="--", label="chance")
    axis.set_xticks(list(places), [str(line.shots) for line in lines])
    axis.set_xlabel("examples in the prompt")
    axis.set_ylabel("% right, 95 % interval over test rows")
    axis.set_ylim(-2, 102)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{experiment.task.name}, {Path(model).name}", loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    plot.save(figure, path)


def _share(found: Accuracy | None) -> str:
    return "-" if found is None else f"{found.mean:.1%} ({_span(found.low, found.high)})"


def _range(found: Accuracy) -> str:
    return _span(min(found.draws), max(found.draws))


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _about(experiment: Experiment, table: Table) -> str:
    task = experiment.task
    parts = [f"{len(experiment.test)} test rows"]
    if task.choices:
        parts.append(f"{len(task.choices)} choices")
    if table.chance is not None:
        parts.append(f"chance {table.chance:.1%}")
    if table.majority is not None:
        parts.append(f"majority {table.majority:.1%}")
    seeds = ", ".join(map(str, experiment.seeds))
    which = "for each row" if task.draw == "per_row" else "for all rows"
    balanced = ", balanced" if task.balanced else ""
    drawn = f"; examples drawn {which}{balanced}, seed{'s' * (len(experiment.seeds) > 1)} {seeds}"
    return f"{task.name}: {', '.join(parts)}{drawn if any(experiment.shots) else ''}"


def _notes(experiment: Experiment, table: Table) -> Iterator[str]:
    mean = "means over the draws; " if any(experiment.shots) and len(experiment.seeds) > 1 else ""
    yield f"{mean}in brackets 95 % intervals (Wilson) for another set of as many test rows"
    failed = [f"{line.failed} with {line.shots} shots" for line in table.lines if line.failed]
    if failed:
        yield f"rows that could not be computed, and count nowhere: {', '.join(failed)}; the first: {table.error}"
