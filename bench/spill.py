"""The spill benchmark: a model larger than its memory limit, run by outsize, accelerate and llama.cpp in turn.

    python bench/spill.py --small                 6 GB in 3.5 GiB; under three minutes once the checkpoints are there
    python bench/spill.py --rounds 2 --out        13 GB in 7 GiB; keeps the figures in bench/results/

outsize and accelerate run the same OPT-shaped checkpoint, llama.cpp a Llama-shaped BF16 GGUF of the same size (it
knows no OPT). All run under the same memory cgroup, which charges the page cache too; it is emptied before each run,
and enforcing the limit needs root. The disk's own rate is measured on the checkpoint's files before and after every
round. The table goes to stdout, and the last line there is a JSON object with every figure; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import checkpoints
import engines
import physical
import report
from engines import Engine, Run
from report import GIB

_HEADROOM = 64 << 20  # between outsize's budget and the limit; cached files of the interpreter are given back


@dataclass(frozen=True)
class Variant:
    """Shapes, limit and token counts of one size of the benchmark."""

    name: str
    shape: str
    gguf_shape: str
    limit_bytes: int
    accelerate_cpu_bytes: int  # what its process needs besides weights has to fit under the limit, too
    tokens: tuple[int, int, int]  # outsize, accelerate, llama.cpp
    timeout_s: float


FULL = Variant("full", "opt-6.7b", "llama-7b", 7 * GIB, 5 * GIB, (9, 5, 6), 400)
SMALL = Variant("small", "opt-6gb", "llama-6gb", 7 * GIB // 2, 9 * GIB // 4, (7, 3, 4), 120)


def lineup(variant: Variant, folder: Path, only: list[str]) -> list[Engine]:
    """The engines with their checkpoints, made where missing."""
    ours, theirs, llama = variant.tokens
    chosen: list[Engine] = []
    if "outsize" in only:
        path = checkpoints.ensure(folder, variant.shape)
        chosen.append(engines.outsize(path, ours, variant.limit_bytes - _HEADROOM))
    if "accelerate" in only:
        path = checkpoints.ensure(folder, variant.shape)
        chosen.append(engines.accelerate(path, theirs, variant.accelerate_cpu_bytes))
    if "llama.cpp" in only:
        chosen.append(engines.llamacpp(checkpoints.ensure_gguf(folder, variant.gguf_shape), llama))
    return chosen


def measure(
    chosen: list[Engine], variant: Variant, rounds: int
) -> tuple[dict[str, list[Run]], list[float], list[float]]:
    """All engines in turn, round after round; the disk's rates, in bytes/s, before the first run and after each.

    The last of the three: those rates just before and after outsize's runs.

    Drives drift within minutes, so each run is held against the mean of the rates just before and just after it.
    """
    runs: dict[str, list[Run]] = {engine.name: [] for engine in chosen}
    rates = [_disk_rate(chosen[0].model)]
    around: list[float] = []
    for _ in range(rounds):
        for engine in chosen:
            print(f"{engine.name} …", file=sys.stderr, flush=True)
            run = engine.run(variant.limit_bytes, variant.timeout_s)
            figure = run.failure or f"{statistics.median(run.printed['token_s']):.2f} s/token"
            print(f"{engine.name}: {figure}", file=sys.stderr, flush=True)
            rates.append(_disk_rate(chosen[0].model))
            runs[engine.name].append(replace(run, disk_bytes_per_s=statistics.mean(rates[-2:])))
            around += rates[-2:] if engine.name == "outsize" else []
    return runs, rates, around


def _disk_rate(model: Path) -> float:
    rate = physical.disk_rate(model, 3.0)["bytes_per_s"]
    print(f"disk: {rate / 1e9:.2f} GB/s", file=sys.stderr, flush=True)
    return rate


def checks(figures: dict[str, dict[str, Any]], budget: int, rates: list[float]) -> list[dict[str, Any]]:
    """What the benchmark is to show, each with what was found; nothing where the engines to compare did not run.

    ``met`` is None for what is held against the disk's rate when that rate was no constant: around outsize's own runs
    it moved by more than a quarter, or outsize read clearly faster than the disk was measured to be.
    """
    own = figures.get("outsize")
    if own is None or own["failure"]:
        return []
    token = own["token_s"]["median"]
    found = [
        ("share of the measured disk rate", ">=", 0.9, own["disk_fraction"]),
        ("cold TTFT over reading the bytes once", "<=", 1.2, own["cold_over_limit"]),
        ("peak memory, GiB", "<=", budget / GIB, own["peak_rss_bytes"] / GIB),
    ]
    for name, least in (("accelerate", 3.0), ("llama.cpp", 2.0)):
        peer = figures.get(name)
        if peer is not None and not peer["failure"]:
            found.append((f"times faster than {name}", ">=", least, peer["token_s"]["median"] / token))
    rows = [
        {"what": what, "sign": sign, "want": want, "have": have, "met": have >= want if sign == ">=" else have <= want}
        for what, sign, want, have in found
    ]
    if max(rates) > 1.25 * min(rates) or own["disk_fraction"] > 1.1:
        for row in rows[:2]:
            row["met"] = None
    other = figures.get("accelerate")
    if other is not None and not other["failure"]:
        # Kernels round otherwise than torch, and among the logits of random weights the largest are close together.
        pairs = zip(own["tokens"], other["tokens"], strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        row = {"what": "first tokens the same as accelerate's", "sign": ">=", "want": 1, "have": same, "met": same >= 1}
        rows.append(row)
    return rows


def said(row: dict[str, Any]) -> str:
    """One check as a line."""
    shown = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in (row["want"], row["have"])]
    verdict = {True: "met    ", False: "MISSED ", None: "UNCLEAR"}[row["met"]]
    why = "; the disk's own rate moved too much to tell" if row["met"] is None else ""
    return f"{verdict} {row['what']}: {shown[1]} (wanted {row['sign']} {shown[0]}){why}"


def main() -> int:
    """Command line; 1 if an engine failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child and its cgroup go, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="6 GB in 3.5 GiB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="outsize,accelerate,llama.cpp", help="engines, comma-separated")
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    keeping = parser.add_mutually_exclusive_group()
    keeping.add_argument("--keep", action="store_true", help="leave the checkpoints for the next time (the default)")
    keeping.add_argument("--clean", action="store_true", help="delete the checkpoints afterwards")
    parser.add_argument(
        "--out", nargs="?", const="", help="write the JSON, to bench/results/<date>-<machine>.json by default"
    )
    arguments = parser.parse_args()
    variant = SMALL if arguments.small else FULL
    budget = variant.limit_bytes - _HEADROOM
    chosen = lineup(variant, arguments.folder, arguments.only.split(","))
    runs, rates, around = measure(chosen, variant, arguments.rounds)
    rate = statistics.median(rates)
    figures = {
        engine.name: report.summary(runs[engine.name], checkpoints.stored_bytes(engine.model)) for engine in chosen
    }
    verdicts = checks(figures, budget, around)
    enforced = all(run.outcome["enforced"] for series in runs.values() for run in series)
    result = {
        "schema": 1,
        "benchmark": f"spill-{variant.name}",
        "machine": report.machine(),
        "limit_bytes": variant.limit_bytes,
        "limit_enforced": enforced,
        "budget_bytes": budget,
        "disk_bytes_per_s": report.spread(rates),
        "engines": figures,
        "checks": verdicts,
        "runs": [asdict(run) for series in runs.values() for run in series],
    }
    print(
        f"{variant.shape} under {variant.limit_bytes / GIB:.1f} GiB, disk {rate / 1e9:.2f} GB/s "
        f"({min(rates) / 1e9:.2f}-{max(rates) / 1e9:.2f})"
    )
    if not enforced:
        print(report.NOT_ENFORCED)
    print(report.table(figures))
    for row in verdicts:
        print(said(row))
    if arguments.out is not None:
        report.keep(result, arguments.out)
    if arguments.clean:
        for engine in chosen:
            checkpoints.remove(engine.model)
    print(json.dumps(result))
    return 1 if any(figure["failure"] for figure in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
