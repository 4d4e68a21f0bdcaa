"""Options of the commands that compute whole datasets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from outsize.errors import UsageError
from outsize.evals.records import STANDARD_INPUT, Record, read_records


def add_data(parser: argparse.ArgumentParser) -> None:
    """DATA, and where the results go."""
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


def to_file(args: argparse.Namespace) -> bool:
    """Whether results go to a file. Raises UsageError for options that make no sense without one."""
    if args.out is not None and str(args.out) != STANDARD_INPUT:
        return True
    if args.retry_errors:
        raise UsageError("there are no earlier results without --out", remedy="--out FILE")
    return False


def records(args: argparse.Namespace, wanted: Sequence[str]) -> list[Record]:
    """The lines of DATA. Raises UsageError for options that contradict each other."""
    if not to_file(args):
        if args.json:
            raise UsageError("--json prints one object, and so would the results", remedy="--out FILE for the results")
    elif args.out.exists() and Path(args.data).exists() and args.out.samefile(args.data):
        raise UsageError(f"{args.out} is the data itself", remedy="another --out")
    columns = {}
    for part in args.fields.split(",") if args.fields else ():
        name, equals, column = part.strip().partition("=")
        if not equals or name not in ("id", *wanted):
            raise UsageError(f"--fields does not understand {part!r}", need=f"NAME=COLUMN, of {', '.join(wanted)}")
        columns[name] = column
    return read_records(args.data, wanted=wanted, columns=columns, config=args.config, split=args.split)
