"""int8 and int4 weights under a memory limit: what spills, what has become resident, and how fast both are.

    python bench/quantised.py                                          a 13 GB bfloat16 Llama, quantised, under 7 GiB
    python bench/quantised.py --shape gpt-neox-20b --weights int4 --limit-gib 22 --only outsize
                                                                       41 GB, quantised, with all of it in memory

outsize converts the native checkpoint once; llama.cpp gets a GGUF of the same shape in the like type, made by its own
quantiser (Llama shapes only; accelerate has no 8- or 4-bit weights on CPUs). All run under one memory cgroup, which
charges the page cache too; it is emptied before each run. Beside each figure stands the physical limit: the bytes of a
token that came from the drive at the drive's rate, or those that rest in memory at the memory's rate, whichever takes
longer. Both rates are measured around each run. The last line of stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints
import engines
import physical
import report
from engines import Engine
from report import GIB

_HEADROOM = 64 << 20
_TIMEOUT_S = 900
_LIKE = {"int8": "Q8_0", "int4": "Q4_0"}


def lineup(options: argparse.Namespace, weights: str) -> list[Engine]:
    """The engines with their checkpoints of one type, made where missing."""
    budget = int(options.limit_gib * GIB) - _HEADROOM
    chosen = []
    if "outsize" in options.only.split(","):
        model = checkpoints.ensure_converted(options.folder, options.shape, weights)
        chosen.append(engines.outsize(model, options.new_tokens, budget))
    if "llama.cpp" in options.only.split(","):
        gguf = checkpoints.ensure_quantised_gguf(options.folder, options.shape, _LIKE[weights])
        chosen.append(engines.llamacpp(gguf, options.new_tokens))
    return chosen


def measure(engine: Engine, weights: str, limit: int) -> dict[str, Any]:
    """One run, with the rates of drive and memory just before and just after it."""
    print(f"{engine.name} {weights} …", file=sys.stderr, flush=True)
    disk = [physical.disk_rate(engine.model, 3.0)["bytes_per_s"]]
    memory = [physical.memory_rate()]
    run = engine.run(limit, _TIMEOUT_S)
    disk.append(physical.disk_rate(engine.model, 3.0)["bytes_per_s"])
    memory.append(physical.memory_rate())
    stored = checkpoints.stored_bytes(engine.model)
    row: dict[str, Any] = {"engine": engine.name, "weights": weights, "failure": run.failure, "stored_bytes": stored}
    row |= {"disk_bytes_per_s": statistics.mean(disk), "memory_bytes_per_s": statistics.mean(memory)}
    if not run.failure:
        token_s = statistics.median(run.printed["token_s"])
        read = statistics.median(run.printed["token_disk_bytes"])
        limit_s = max(read / row["disk_bytes_per_s"], max(stored - read, 0) / row["memory_bytes_per_s"])
        row |= {
            "token_s": report.spread(run.printed["token_s"]),
            "token_disk_bytes": read,
            "token_limit_s": limit_s,
            "share_of_limit": limit_s / token_s,
            "cold_first_token_s": run.printed["cold_first_token_s"],
            "cold_limit_s": stored / row["disk_bytes_per_s"],
            "peak_rss_bytes": run.printed["peak_rss_bytes"],
            "predicted_token_s": run.printed.get("predicted_token_s"),
            "predicted_first_token_s": run.printed.get("predicted_first_token_s"),
        }
    return row | {"run": asdict(run)}


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    heads = ("s/token", "predicted", "limit", "share", "GB disk/token", "TTFT s", "read once", "peak GiB")
    print(f"{'engine':12}{'type':6}" + "".join(f"{head:>15}" for head in heads))
    for row in rows:
        if row["failure"]:
            print(f"{row['engine']:12}{row['weights']:6} failed: {row['failure']}")
            continue
        predicted = row["predicted_token_s"]
        cells = (
            f"{row['token_s']['median']:.3f} (n={row['token_s']['n']})",
            "-" if predicted is None else f"{predicted:.3f}",
            f"{row['token_limit_s']:.3f}",
            f"{row['share_of_limit']:.0%}",
            f"{row['token_disk_bytes'] / 1e9:.2f}",
            f"{row['cold_first_token_s']:.1f}",
            f"{row['cold_limit_s']:.1f}",
            f"{row['peak_rss_bytes'] / GIB:.2f}",
        )
        print(f"{row['engine']:12}{row['weights']:6}" + "".join(f"{cell:>15}" for cell in cells))
    for weights in dict.fromkeys(row["weights"] for row in rows):
        median = {r["engine"]: r["token_s"]["median"] for r in rows if r["weights"] == weights and not r["failure"]}
        if {"outsize", "llama.cpp"} <= median.keys():
            print(f"{weights}: {median['llama.cpp'] / median['outsize']:.2f} times llama.cpp")


def main() -> int:
    """Command line; 1 if an engine failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child and its cgroup go, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-7b")
    parser.add_argument("--weights", default="int8,int4", help="comma-separated")
    parser.add_argument("--limit-gib", type=float, default=7.0)
    parser.add_argument("--only", default="outsize,llama.cpp", help="engines, comma-separated")
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    options = parser.parse_args()
    limit = int(options.limit_gib * GIB)
    kinds = options.weights.split(",")
    rows = [measure(engine, weights, limit) for weights in kinds for engine in lineup(options, weights)]
    print(f"{options.shape} under {options.limit_gib:g} GiB")
    if not all(row["run"]["outcome"]["enforced"] for row in rows):
        print(report.NOT_ENFORCED)
    show(rows)
    result = {"schema": 1, "benchmark": f"quantised-{options.shape}", "machine": report.machine(), "rows": rows}
    result |= {"limit_bytes": limit}
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))
    return 1 if any(row["failure"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
