"""``outsize fewshot``: a task's accuracy for each number of examples in the prompt, all in as few sweeps as can be."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outsize.cli import arguments, dataset, fewshot_table, plot
from outsize.errors import UsageError
from outsize.evals.dataset_run import SCHEMA
from outsize.evals.fewshot.accuracy import tabulate
from outsize.evals.fewshot.experiment import Experiment, lay_out
from outsize.evals.fewshot.job import job_of
from outsize.evals.fewshot.task import read_task
from outsize.evals.records import STANDARD_INPUT
from outsize.progress import note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("--task", type=Path, required=True, metavar="TASK.yaml", help="what is asked: docs/fewshot.md")
    parser.add_argument("--shots", default="0,1,4", metavar="N[,...]", help="examples per prompt (default: 0,1,4)")
    parser.add_argument("--seeds", default="0", metavar="N[,...]", help="one draw of examples each (default: 0)")
    parser.add_argument("--balanced", action="store_true", help="draw as many examples of each choice")
    parser.add_argument("--metric", metavar="NAME[,...]", help="others than the task names")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N test rows only")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write accuracy against shots as .svg or .png")
    dataset.add_results(parser, "append a row for each prompt to a file; run again, and it goes on there")
    arguments.add_request(parser, dataset=True)


def run(args: argparse.Namespace) -> int:
    if args.out is not None and str(args.out) == STANDARD_INPUT:
        raise UsageError("the table goes to standard output, so rows cannot", remedy="--out FILE")
    if args.plot is not None:
        _check_plot(args.plot)
    dataset.results_file(args)
    experiment = _experiment(args)
    if experiment.left_out and not args.json:
        note(f"{experiment.left_out} examples are test rows too, and are left out")
    rows: list[Any] = []
    summary = dataset.complete(args, job_of(experiment.task), experiment.prompts, rows.append)
    table = tabulate(experiment, rows)
    if args.json:
        print(json.dumps({"schema": SCHEMA, **fewshot_table.as_json(experiment, table), **asdict(summary)}))
    else:
        print("\n".join(fewshot_table.as_text(experiment, table)))
        note(json.dumps(asdict(summary)))
    if args.plot is not None:
        fewshot_table.save_plot(experiment, table, args.model, args.plot)
    return 0


def _experiment(args: argparse.Namespace) -> Experiment:
    shots, seeds = _numbers("--shots", args.shots), _numbers("--seeds", args.seeds)
    if args.limit is not None and args.limit < 1:
        raise UsageError("--limit must be at least 1", have=str(args.limit))
    task = read_task(args.task)
    if args.metric:
        task = task.with_metrics(tuple(name.strip() for name in args.metric.split(",")))
    if args.balanced and task.free:
        raise UsageError("--balanced is for tasks with choices")
    task = task.model_copy(update={"balanced": task.balanced or args.balanced})
    return lay_out(task, shots, seeds, args.limit)


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers from 0 with commas between, ascending, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise UsageError(f"{option} does not understand {text!r}", need="whole numbers, e.g. 0,1,4")
    return sorted({int(part) for part in parts})


def _check_plot(path: Path) -> None:
    """Before hours of computing, not after them."""
    plot.figure_class(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot plot to {path}: there is no folder {path.parent}")
