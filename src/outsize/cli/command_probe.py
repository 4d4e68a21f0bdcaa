"""``outsize probe``: measures this machine once, so that plans need not assume."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from outsize.errors import ModelNotFound, UsageError
from outsize.machine.profile import profile_path, save_profile
from outsize.models.resolve import find_folder
from outsize.progress import note
from outsize.sizes import format_rate, format_size

if TYPE_CHECKING:
    from outsize.probe import Findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model on this machine: its weights are read")
    parser.add_argument(
        "--path", type=Path, metavar="DIR", help="whose drive to measure (default: Hugging Face's cache folder)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    folder = _folder(args.model, args.path)
    from outsize.probe import MOST_BYTES, keep, measure

    note(f"measuring, for under a minute, with at most {format_size(MOST_BYTES)} of memory")
    found = measure(folder, note)
    path: Path | None = profile_path()
    assert path is not None
    kept = keep(found, path)
    problem = ""
    try:
        save_profile(kept, path)
    except OSError as error:
        problem = f"the measurements cannot be kept in {path}: {error.strerror}; try: OUTSIZE_CACHE with another folder"
        path = None
    if args.json:
        print(json.dumps(to_json(found, path, problem)))
    else:
        print("\n".join(table(found)))
        if path is not None:
            print(f"kept in {path}")
    for line in [*found.left_out, *([problem] if problem else [])]:
        note(f"outsize: {line}")
    return 1 if problem or not (found.profile.disks or found.profile.memory_bytes_per_s) else 0


def _folder(model: str | None, path: Path | None) -> Path | None:
    if model is None:
        if path is not None and not path.is_dir():
            raise UsageError(f"{path} is no folder", remedy="--path with a folder on the drive to measure")
        return path
    if path is not None:
        raise UsageError("MODEL and --path both say which drive to measure", remedy="one of them")
    folder = find_folder(model)
    if folder is None or folder.path is None:
        raise ModelNotFound(f"{model}: not on this machine", remedy="--path with a folder, or no MODEL at all")
    return folder.path


def table(found: Findings) -> list[str]:
    profile = found.profile
    identity = profile.identity
    lines = [f"{identity.host}: {identity.cpu}, {identity.cores} cores"]
    if found.disk is not None:
        disk = found.disk
        spread = f"{format_rate(disk.least)} to {format_rate(disk.most)}"
        how = f"{format_size(disk.nbytes)} of {disk.source}"
        lines.append(_line("disk", "direct reads" if disk.direct else "buffered reads", format_rate(disk.bytes_per_s)))
        lines.append(f"{'':28}{spread}; {how}")
    if profile.memory_bytes_per_s:
        lines.append(_line("ram", "reading", format_rate(profile.memory_bytes_per_s)))
    lines += _matmuls("ram", profile.matmul_bytes_per_s, profile.flops)
    for gpu in found.machine.gpus:
        figures = profile.gpus.get(gpu.uuid)
        if figures is not None:
            lines.append(_line(gpu.name, "reading", f"{format_rate(figures.bytes_per_s)}   {gpu.label}"))
            lines.append(_line(gpu.name, "from host, pinned", format_rate(figures.link_bytes_per_s)))
            lines += _matmuls(gpu.name, figures.matmul_bytes_per_s, figures.flops)
    return [*lines, f"in {found.seconds:.0f} s"]


def _matmuls(name: str, decode: Mapping[str, float], prefill: Mapping[str, float]) -> list[str]:
    lines = []
    if decode:
        rates = ", ".join(f"{dtype} {format_rate(rate)}" for dtype, rate in decode.items())
        lines.append(_line(name, "one row (decode)", rates))
    if prefill:
        rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in prefill.items())
        lines.append(_line(name, "many rows (prefill)", rates))
    return lines


def _line(name: str, what: str, value: str) -> str:
    return f"{name:6}  {what:20}{value}"


def to_json(found: Findings, path: Path | None, problem: str) -> dict[str, object]:
    """The object of ``--json``. ``kept``: the file, or null where it could not be written."""
    return {
        "schema": 1,
        "profile": asdict(found.profile),
        "disk": None if found.disk is None else asdict(found.disk),
        "left_out": [*found.left_out, *([problem] if problem else [])],
        "kept": None if path is None else os.fspath(path),
        "seconds": found.seconds,
    }
