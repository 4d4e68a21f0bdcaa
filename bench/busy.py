"""Decode beside a process that keeps one core busy: how much slower, with OpenMP threads that sleep or spin.

    python bench/busy.py                     the bundled model and a Llama of 6 GB's shape in int4

Each run is a process of its own; they take turns, with and without a busy process beside them. The limit of physics is
the quiet run over the cores that are left. The table goes to stdout, and the last line there is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import checkpoints
import report

TOKENS = 24
BUSY = "while True: pass"
POLICIES = ("PASSIVE", "ACTIVE")
RUN = """
import json, sys, outsize
from outsize.probe.timed_generation import timed_generation
with outsize.load(sys.argv[1], weights=sys.argv[2], no_gpu=True, context=128) as model:
    timed_generation(model, 8, 2)
    print(json.dumps([timed_generation(model, 8, int(sys.argv[3])).token_s for _ in range(3)]))
"""


def token_s(model: Path, weights: str, policy: str, kernels: str) -> float:
    """The median seconds of a token, in a new process."""
    environment = os.environ | {"OMP_WAIT_POLICY": policy, "OUTSIZE_KERNELS": kernels}
    command = [sys.executable, "-c", RUN, str(model), weights, str(TOKENS)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Processes beside, each of which would take a whole core."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    parser.add_argument("--shape", default="llama-6gb")
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    options = parser.parse_args()
    demo = Path(str(resources.files("outsize"))) / "demo_model"
    models = (
        ("bundled", demo, "native", "auto"),
        ("bundled, in torch", demo, "native", "torch"),
        (f"{options.shape} in int4", checkpoints.ensure(options.folder, options.shape), "int4", "auto"),
    )
    rows = []
    for name, path, weights, kernels in models:
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.rounds):
            for policy in POLICIES:
                for beside in (0, 1):
                    with busy(beside):
                        found.setdefault((policy, beside), []).append(token_s(path, weights, policy, kernels))
        medians = {key: statistics.median(values) for key, values in found.items()}
        for policy in POLICIES:
            quiet, disturbed = medians[policy, 0], medians[policy, 1]
            row = {"model": name, "policy": policy, "quiet_s": quiet, "busy_s": disturbed, "ratio": disturbed / quiet}
            rows.append(row | {"runs": {str(beside): found[policy, beside] for beside in (0, 1)}})
            print(f"{name:24}{policy:9}quiet {quiet * 1e3:8.2f} ms   beside one busy process {disturbed * 1e3:8.2f} ms"
                  f"   {disturbed / quiet:5.2f} times", flush=True)  # fmt: skip
    result = {"schema": 1, "benchmark": "busy", "machine": report.machine(), "rows": rows}
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
