"""``outsize verify``: whether every byte of a converted folder is what it was when it was written."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from outsize.convert.checksums import verify
from outsize.progress import bars
from outsize.sizes import format_rate, format_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder that outsize convert wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    with bars() as bar:
        found = verify(args.folder, bar("verifying"))
    seconds = time.monotonic() - began
    tensors = sum(len(parts) - 1 for parts in found.files.values() if len(parts) > 1)
    rate = found.nbytes / seconds
    if args.json:
        answer = {"schema": 1, "folder": os.fspath(args.folder), "tensors": tensors, "bytes": found.nbytes}
        print(json.dumps({**answer, "seconds": seconds, "bytes_per_s": rate}))
    else:
        sizes = f"{tensors} tensors, {format_size(found.nbytes)} in {seconds:.1f} s, {format_rate(rate)}"
        print(f"{args.folder}: all as it was written: {sizes}")
    return 0
