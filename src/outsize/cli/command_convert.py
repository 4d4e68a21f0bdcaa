"""``outsize convert``: a model in int8 or int4, as a folder that other programs can load too."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from outsize.cli import arguments
from outsize.convert.cache import Conversion, convert_model
from outsize.progress import bars
from outsize.sizes import format_rate, format_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("--weights", choices=("int8", "int4"), required=True, help="weight format")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new folder (default: in outsize's cache)")
    parser.add_argument(
        "--discard-source",
        action="store_true",
        help="download a hub model file by file, and drop each once it is converted",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    with bars() as bar:
        made = convert_model(
            args.model,
            args.weights,
            out=args.out,
            revision=args.revision,
            discard_source=args.discard_source,
            on_download=bar("downloading"),
            on_convert=bar("converting"),
        )
    seconds = time.monotonic() - began
    print(json.dumps(to_json(made, seconds)) if args.json else line(made, seconds))
    return 0


def line(made: Conversion, seconds: float) -> str:
    size = format_size(made.checksums.nbytes)
    if not made.source_bytes:
        return f"{made.folder}: {size}, there already"
    read = format_size(made.source_bytes)
    return f"{made.folder}: {size} from {read} in {seconds:.1f} s, {format_rate(made.source_bytes / seconds)} read"


def to_json(made: Conversion, seconds: float) -> dict[str, object]:
    return {
        "schema": 1,
        "folder": os.fspath(made.folder),
        "weights": made.checksums.made.weights,
        "bytes": made.checksums.nbytes,
        "source_bytes": made.source_bytes,
        "seconds": seconds,
    }
