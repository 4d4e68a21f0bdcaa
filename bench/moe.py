"""Mixture-of-experts models beside accelerate and llama.cpp: tokens, bytes from the drive, memory.

    python bench/moe.py spill            # moe-5gb in bfloat16 under 2.5 GiB: outsize, accelerate with disk offload
    python bench/moe.py resident         # Qwen3-30B-A3B's shape in 4 bits, all in memory: outsize, llama.cpp
    python bench/moe.py cached           # the same under 8 GiB, with uniform and with skewed routing: llama.cpp by mmap
    python bench/moe.py mxfp4            # gpt-oss-20b's shape as published

Weights are random and made where missing (``make_mixture.py``). Each run is a process of its own in a cgroup; drive and
memory are measured just before and after. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import checkpoints
import engines
import physical
import report
from engines import Engine
from report import GIB

HEADROOM = 64 << 20
TIMEOUT_S = 900
SKEW = 0.5  # of the router's rows: the hottest quarter of the experts gets about half of the uses


@dataclass(frozen=True)
class Part:
    """One comparison: which checkpoint, under which limit of memory, with which routing."""

    shape: str
    limit_gib: float
    weights: str
    peer: str
    warm: bool = False
    skews: tuple[float, ...] = (0.0,)


PARTS = {
    "spill": Part("moe-5gb", 2.5, "native", "accelerate"),
    "resident": Part("qwen3-30b-a3b", 22.0, "int4", "llama.cpp", warm=True),
    "cached": Part("qwen3-30b-a3b", 8.0, "int4", "llama.cpp", skews=(0.0, SKEW)),
    "mxfp4": Part("gpt-oss-20b", 20.0, "native", "", warm=True),
}


def ensure(part: Part, folder: Path, skew: float, *, gguf: bool = False) -> Path:
    """The checkpoint with that routing, made or with new routers."""
    path = folder / (f"{part.shape}.gguf" if gguf else f"{part.shape}-{part.weights}")
    if not path.exists() or len(part.skews) > 1:
        print(f"making {path}", file=sys.stderr, flush=True)
        script = Path(__file__).with_name("make_mixture.py")
        command = [sys.executable, str(script), part.shape, str(path), "--weights", part.weights, "--tokenizer"]
        subprocess.run([*command, "--skew", str(skew)], check=True, stdout=subprocess.DEVNULL)
    return path


def lineup(part: Part, options: argparse.Namespace, skew: float) -> list[Engine]:
    """The engines of a part, each with its checkpoint."""
    budget = int(part.limit_gib * GIB) - HEADROOM
    warm = ("--forced", *(("--warm",) if part.warm else ()))
    chosen = []
    if "outsize" in options.only:
        model = ensure(part, options.folder, skew)
        chosen.append(engines.outsize(model, options.new_tokens, budget, *warm))
    if part.peer == "accelerate" and "accelerate" in options.only:
        model = ensure(part, options.folder, skew)
        chosen.append(engines.accelerate(model, min(options.new_tokens, 4), int(0.5 * GIB), *warm))
    if part.peer == "llama.cpp" and "llama.cpp" in options.only:
        # Several tokens at a time crash in its repacked Q4_0 experts (0.3.36): its prompt goes token by token.
        gguf = ensure(part, options.folder, skew, gguf=True)
        repack = () if part.warm else ("--no-repack",)  # its copy would not fit
        chosen.append(engines.llamacpp(gguf, options.new_tokens, "--batch", "1", *repack, *warm))
    return chosen


def measure(engine: Engine, part: Part, skew: float) -> dict[str, Any]:
    """One run, with the rates of drive and memory just before and just after it."""
    print(f"{engine.name} {engine.model.name} …", file=sys.stderr, flush=True)
    disk, memory = [physical.disk_rate(engine.model, 3.0)["bytes_per_s"]], [physical.memory_rate()]
    run = engine.run(int(part.limit_gib * GIB), TIMEOUT_S)
    disk.append(physical.disk_rate(engine.model, 3.0)["bytes_per_s"])
    memory.append(physical.memory_rate())
    row: dict[str, Any] = {"engine": engine.name, "skew": skew, "failure": run.failure}
    row |= {"disk_bytes_per_s": statistics.mean(disk), "memory_bytes_per_s": statistics.mean(memory)}
    row |= {"stored_bytes": checkpoints.stored_bytes(engine.model), "run": asdict(run)}
    if run.failure:
        return row
    printed = run.printed
    row |= {
        "token_s": report.spread(printed["token_s"]),
        "token_disk_bytes": statistics.mean(printed["token_disk_bytes"]),
        "cold_first_token_s": printed["cold_first_token_s"],
        "peak_rss_bytes": printed["peak_rss_bytes"],
        "predicted_token_s": printed.get("predicted_token_s"),
        "experts": printed.get("experts"),
    }
    return row


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    head = f"{row['engine']:11}{row['skew']:5.2f}"
    if row["failure"]:
        return f"{head} failed: {row['failure']}"
    token, predicted, experts = row["token_s"]["median"], row["predicted_token_s"], row["experts"]
    cells = [
        f"{token:.3f} s (n={row['token_s']['n']})",
        "-" if predicted is None else f"{predicted:.3f}",
        f"{row['token_disk_bytes'] / 1e9:.3f}",
        f"{row['token_disk_bytes'] / row['disk_bytes_per_s']:.3f}",
        f"{row['cold_first_token_s']:.1f}",
        f"{row['peak_rss_bytes'] / GIB:.2f}",
        "-" if not experts else f"{experts['hits'] / max(experts['hits'] + experts['misses'], 1):.0%}",
    ]
    return head + "".join(f"{cell:>16}" for cell in cells)


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Each peer's seconds and bytes over ours, by routing."""
    said = []
    for skew in dict.fromkeys(row["skew"] for row in rows):
        done = {row["engine"]: row for row in rows if row["skew"] == skew and not row["failure"]}
        mine = done.pop("outsize", None)
        for name, row in done.items():
            if mine is not None:
                times = row["token_s"]["median"] / mine["token_s"]["median"]
                said.append(f"skew {skew:g}: {times:.2f} times as fast as {name}")
                if mine["token_disk_bytes"]:
                    said[-1] += f", {row['token_disk_bytes'] / mine['token_disk_bytes']:.1f} times fewer bytes read"
    return said


def main() -> int:
    """Command line; 1 if an engine failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child and its cgroup go, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--only", default="outsize,accelerate,llama.cpp", help="engines, comma-separated")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    options = parser.parse_args()
    part = PARTS[options.part]
    rows = [measure(engine, part, skew) for skew in part.skews for engine in lineup(part, options, skew)]
    print(f"{part.shape} under {part.limit_gib:g} GiB")
    heads = ("token", "predicted", "GB disk/token", "at drive's rate", "TTFT s", "peak GiB", "hits")
    print(f"{'engine':11}{'skew':>5}" + "".join(f"{head:>16}" for head in heads))
    print("\n".join([*map(show, rows), *verdict(rows)]))
    result = {"schema": 1, "benchmark": f"moe-{options.part}", "machine": report.machine(), "rows": rows}
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))
    return 1 if any(row["failure"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
