"""Two source trees of outsize against each other: the same benchmarks in turn, so that the machine is the same to both.

    python bench/compare.py ../before .            six rounds of spill, decode and kernels, each tree's own scripts

The trees need their compiled kernels (``python -m outsize.kernels.cpu.build``, with PYTHONPATH). Each round runs both
trees, each of them first in turn. The table goes to stdout: medians, and the ratio of the second to the first, where
more than one is slower; the last line there is a JSON object. The physical limits and the peers are in the benchmarks'
own tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import report

SEEN = 0.03  # slower by this share is said

Figures = dict[str, float]  # the more, the slower


def spill(result: dict[str, Any]) -> Figures:
    """How many times as long as the drive alone would take, whose rate changes from minute to minute."""
    own = result["engines"]["outsize"]
    return {
        "spill: token, times reading its bytes": 1 / own["disk_fraction"],
        "spill: cold first token, times reading all": own["cold_over_limit"],
    }


def decode(result: dict[str, Any]) -> Figures:
    """Seconds of a token with all weights in memory."""
    return {f"decode {row['kind']}, s": row["token_s"] for row in result["rows"]}


def kernels(result: dict[str, Any]) -> Figures:
    """Seconds in which a kernel reads a gigabyte of weights."""
    return {
        f"kernel, s/GB: {row['kind']} {row['shape'][0]}x{row['shape'][1]}, {row['rows']} rows": 1e9 / row["bytes_per_s"]
        for row in result["results"]
        if row["way"] == "outsize"
    }


def commands(folder: Path, shape: str) -> dict[str, tuple[list[str], Any]]:
    """Each benchmark's arguments, and what reads its last line."""
    where = ["--folder", str(folder)]
    return {
        "spill.py": (["--small", "--only", "outsize", *where], spill),
        "decode.py": (["--shape", shape, "--only", "outsize", *where], decode),
        "kernels.py": (["--rows", "1,8,64", "--shapes", "4096x4096,4096x11008", "--no-torch"], kernels),
    }


def figures(tree: Path, script: str, arguments: list[str]) -> dict[str, Any]:
    """The JSON object of one run of a tree's own script. Raises CalledProcessError."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    command = [sys.executable, str(tree / "bench" / script), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="spill.py,decode.py,kernels.py", help="benchmarks, comma-separated")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "work", help="where the checkpoints are")
    parser.add_argument("--shape", default="llama-6gb", help="of decode.py")
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    options = parser.parse_args()
    seconds: list[dict[str, list[float]]] = [defaultdict(list), defaultdict(list)]
    trees = [tree.resolve() for tree in options.trees]
    for script, (arguments, read) in commands(options.folder.resolve(), options.shape).items():
        for turn in range(options.rounds) if script in options.only.split(",") else ():
            for which in (turn % 2, 1 - turn % 2):
                for name, value in read(figures(trees[which], script, arguments)).items():
                    seconds[which][name].append(value)
            print(f"{script}: round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    rows = []
    for name in seconds[0]:
        before, after = (statistics.median(taken[name]) for taken in seconds)
        pairs = [two / one for one, two in zip(seconds[0][name], seconds[1][name], strict=True)]
        ratio = statistics.median(pairs)
        rows.append({"what": name, "before": before, "after": after, "ratio": ratio, "ratios": pairs})
        print(f"{name:46}{before:9.4f}{after:9.4f}{ratio:7.3f}{'  SLOWER' if ratio > 1 + SEEN else ''}")
    result = {"schema": 1, "benchmark": "compare", "machine": report.machine(), "rounds": options.rounds, "rows": rows}
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
