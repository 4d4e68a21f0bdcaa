"""What the commands that compute whole datasets share: options, lines in, what it took."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from outsize.api import folder_in
from outsize.cli import arguments, trace_file
from outsize.errors import OutsizeError, UsageError
from outsize.evals.dataset_run import SCHEMA, DatasetRunner, Job, Line, Row, Summary
from outsize.evals.records import STANDARD_INPUT, read_records
from outsize.evals.results import line_of
from outsize.progress import bars, note


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", help="a JSONL file, - for standard input, or a dataset on the hub or in a folder"
    )
    add_results(parser, "append results to a file (default: standard output)")
    parser.add_argument("--split", default="test", metavar="NAME", help="of such a dataset (default: test)")
    parser.add_argument("--config", metavar="NAME", help="of such a dataset")
    parser.add_argument("--fields", metavar="NAME=COLUMN[,...]", help="other names of fields in DATA, e.g. prompt=text")


def add_results(parser: argparse.ArgumentParser, where: str) -> None:
    """``--out``, whose help is ``where``, and ``--retry-errors``."""
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)
    parser.add_argument("--retry-errors", action="store_true", help="compute rows again that ended in an error")


def results_file(args: argparse.Namespace) -> Path | None:
    """Where results go, if not to standard output. Raises UsageError for options that make no sense there."""
    if args.out is not None and str(args.out) != STANDARD_INPUT:
        out: Path = args.out
        return out
    if args.retry_errors:
        raise UsageError("there are no earlier results without --out", remedy="--out FILE")
    return None


def run_dataset(args: argparse.Namespace, job: Job, wanted: Sequence[str], either: Sequence[str] = ()) -> int:
    """Reads DATA, computes what has no row yet, and says what it took.

    Its lines must have the ``wanted`` fields, and one of ``either``.
    """
    out = results_file(args)
    if out is None and args.json:
        raise UsageError("--json prints one object, and so would the results", remedy="--out FILE for the results")
    if out is not None and out.exists() and Path(args.data).exists() and out.samefile(args.data):
        raise UsageError(f"{out} is the data itself", remedy="another --out")
    columns = {}
    for part in args.fields.split(",") if args.fields else ():
        name, equals, column = part.strip().partition("=")
        if not equals or name not in ("id", *wanted, *either):
            need = f"NAME=COLUMN, of {', '.join((*wanted, *either))}"
            raise UsageError(f"--fields does not understand {part!r}", need=need)
        columns[name] = column
    records = read_records(
        args.data, wanted=wanted, either=either, columns=columns, config=args.config, split=args.split
    )
    failed: list[str] = []

    def see(row: Row) -> None:
        if "error" in row:
            failed.append(str(row["error"]))
        if out is None:
            _to_stdout(row)

    summary = complete(args, job, records, see)
    if args.json:
        print(json.dumps({"schema": SCHEMA, **asdict(summary)}))
    else:
        note(json.dumps(asdict(summary)))
    if summary.rows and summary.errors == summary.rows and not summary.rows_before:
        raise OutsizeError(f"not one of {summary.rows} rows could be computed; the first: {failed[0]}")
    return 0


def complete(args: argparse.Namespace, job: Job, lines: Sequence[Line], see: Callable[[Row], None]) -> Summary:
    """Computes the rows that ``--out`` does not hold yet, as ``DatasetRunner.complete`` does."""
    options = arguments.options(args)
    with bars(quiet=args.json) as bar:
        folder = folder_in(args.model, options, bar("downloading"), bar("converting"))
    path = getattr(args, "trace", None)  # fewshot has none
    trace = trace_file.check(path)
    runner = DatasetRunner(folder, options, verbose=not args.json, noun="rows", trace=trace)
    summary = runner.complete(job, lines, see, results_file(args), retry_errors=args.retry_errors)
    trace_file.write(trace, path)
    return summary


def _to_stdout(row: Row) -> None:
    sys.stdout.buffer.write(line_of(row))
    sys.stdout.flush()
