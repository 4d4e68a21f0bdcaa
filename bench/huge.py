"""A model larger than the machine's memory: GPT-NeoX-20B's shape, 41 GB in bfloat16, eight tokens under 24 GB.

    python bench/huge.py --folder /data

Makes the checkpoint (it needs 42 GB of disk), runs outsize on it under a memory cgroup of 24 GB where one can be
made, prints the figures beside what the disk itself allows, and deletes the checkpoint unless ``--keep`` is given. The
last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import checkpoints
import engines
import physical
import report
from report import GIB

_SHAPE = "gpt-neox-20b"
_LIMIT_BYTES = 24 * 10**9
_HEADROOM = GIB  # of the limit, not given to outsize: the machine itself has little more


def measure(model: Path, new_tokens: int, budget: int, timeout: float) -> tuple[dict[str, Any], bool]:
    """The result object, and whether the run succeeded."""
    rates = [physical.disk_rate(model)["bytes_per_s"]]
    run = engines.outsize(model, new_tokens, budget).run(_LIMIT_BYTES, timeout)
    rates.append(physical.disk_rate(model)["bytes_per_s"])
    run = replace(run, disk_bytes_per_s=statistics.mean(rates))
    figures = report.summary([run], checkpoints.stored_bytes(model))
    result = {
        "schema": 1,
        "benchmark": "huge",
        "machine": report.machine(),
        "stored_bytes": checkpoints.stored_bytes(model),
        "limit_bytes": _LIMIT_BYTES,
        "limit_enforced": run.outcome["enforced"],
        "budget_bytes": budget,
        "disk_bytes_per_s": report.spread(rates),
        "engines": {"outsize": figures},
        "runs": [asdict(run)],
    }
    return result, not run.failure


def show(result: dict[str, Any]) -> None:
    """The figures for a person."""
    rate = result["disk_bytes_per_s"]["median"]
    stored = result["stored_bytes"]
    budget = result["budget_bytes"] / GIB
    print(f"{_SHAPE}: {stored / 1e9:.1f} GB in a budget of {budget:.1f} GiB, disk {rate / 1e9:.2f} GB/s")
    if not result["limit_enforced"]:
        print(report.NOT_ENFORCED)
    print(report.table(result["engines"]))
    figures = result["engines"]["outsize"]
    if not figures["failure"]:
        print(
            f"physical limits: first token {figures['cold_limit_s']:.1f} s, then {figures['token_limit_s']:.2f} s/token"
        )


def main() -> int:
    """Command line; 1 if the run failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child and its cgroup go, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoint is made"
    )
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--ram-bytes", type=int, default=_LIMIT_BYTES - _HEADROOM, help="outsize's budget")
    parser.add_argument("--timeout", type=float, default=1800.0)
    parser.add_argument("--keep", action="store_true", help="do not delete the checkpoint afterwards")
    parser.add_argument("--out", help="also write the JSON here")
    arguments = parser.parse_args()
    model = arguments.folder / _SHAPE
    try:
        checkpoints.ensure(arguments.folder, _SHAPE)
        result, worked = measure(model, arguments.new_tokens, arguments.ram_bytes, arguments.timeout)
    finally:
        if not arguments.keep and model.exists():  # a half-made one too: nobody wants 41 GB left behind
            checkpoints.remove(model)
    show(result)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
