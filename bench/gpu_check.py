"""The checks that need a GPU, in one go and under nine minutes; installs nothing.

    PYTHONPATH=src python3 bench/gpu_check.py --out
    PYTHONPATH=src python3 bench/gpu_check.py --emulate --models llama     without a GPU: the script itself

Right answers over every kind of home (gpu_parity.py), then the speed of an OPT-6.7B shape on GPU, RAM and disk beside
accelerate's and the physical limit (gpu_times.py), with rates from `outsize probe`. The table goes to stdout, and the
last line there is a JSON object with every figure; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_parity
import report
from gpu_parity import Verdict

HERE = Path(__file__).parent
GIB = 1 << 30
TOTAL_S = 530.0
PARITY_S = 170.0
CASE_S = 90.0
EMULATED = "64MiB,64MiB"
_AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Case:
    """One run: which engine, and what it may use."""

    home: str
    engine: str
    gpu_bytes: int | None
    ram_bytes: int | None
    tokens: int

    def command(self, model: Path) -> list[str]:
        """The command line."""
        limits = [("--gpu-bytes", self.gpu_bytes), ("--ram-bytes", self.ram_bytes), ("--tokens", self.tokens)]
        words = [str(word) for name, value in limits if value is not None for word in (name, value)]
        return [sys.executable, str(HERE / "gpu_times.py"), self.engine, str(model), *words]


CASES = tuple(
    Case(home, engine, gpu, ram, tokens)
    for home, gpu, ram, tokens in (
        ("gpu", None, None, 32),
        ("half gpu, ram", 7 * GIB, None, 16),
        ("gpu, ram, disk", 5 * GIB, 4 * GIB, 6),
    )
    for engine in ("outsize", "accelerate")
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def last_json(command: list[str], timeout: float) -> dict[str, Any]:
    """The object on the last line of a command's stdout, or ``{"failure": why}``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {timeout:.0f} s"}
    lines = done.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failure": f"exit {done.returncode}: {last}"}


def limit_s(weights: dict[str, int], profile: dict[str, Any]) -> float | None:
    """Seconds of a token at the least: what computes in turn, or the disk where that takes longer."""
    gpu = next(iter(profile.get("gpus", {}).values()), None)
    disk = next(iter(profile.get("disks", {}).values()), None)
    if gpu is None or disk is None or not profile.get("memory_bytes_per_s"):
        return None
    computed = weights.get("gpu0", 0) / gpu["bytes_per_s"]
    computed += (weights.get("ram", 0) + weights.get("disk", 0)) / profile["memory_bytes_per_s"]
    return max(computed, weights.get("disk", 0) / disk)


def times(model: Path, profile: dict[str, Any], deadline: float) -> list[dict[str, Any]]:
    """All cases, as far as the time goes."""
    rows = []
    for case in CASES:
        left = deadline - time.monotonic()
        if left < 20:
            figures: dict[str, Any] = {"failure": "no time left"}
        else:
            say(f"{case.engine}, {case.home} ...")
            figures = last_json(case.command(model), min(CASE_S, left))
        row = {"home": case.home, "engine": case.engine, **figures}
        if "failure" not in figures:
            row["token_s"] = statistics.median(figures["token_s"])
            row["limit_s"] = limit_s(figures["weights_bytes"], profile)
        rows.append(row)
    return rows


def times_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per case."""
    lines = [f"{'home':16} {'engine':11} {'s/token':>9} {'limit':>9} {'TTFT':>8} {'cold TTFT':>10} {'GPU GiB':>8}"]
    for row in rows:
        start = f"{row['home']:16} {row['engine']:11}"
        if "failure" in row:
            lines.append(f"{start} failed: {row['failure']}")
            continue
        limit = "-" if row["limit_s"] is None else f"{row['limit_s']:.4f}"
        lines.append(
            f"{start} {row['token_s']:9.4f} {limit:>9} {row['first_token_s']:8.3f} {row['cold_first_token_s']:10.2f} "
            f"{row['gpu_bytes'] / GIB:8.2f}"
        )
    return lines


def budget_checks(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Whether outsize stayed within what it was given of the GPU, CUDA's own memory included."""
    return [
        Verdict(
            f"{row['home']}: within --gpu-memory",
            row["gpu_bytes"] <= row["gpu_budget_bytes"],
            f"{row['gpu_bytes'] / GIB:.2f} of {row['gpu_budget_bytes'] / GIB:.2f} GiB",
        )
        for row in rows
        if row["engine"] == "outsize" and "failure" not in row and row["gpu_budget_bytes"]
    ]


def check_parity(names: tuple[str, ...], gpus: int, deadline: float) -> list[Verdict]:
    """All parity checks, said as they come."""
    verdicts = []
    with gpu_parity.slow_host():
        for verdict in gpu_parity.parity(names, gpus, deadline):
            say(line(verdict))
            verdicts.append(verdict)
    return verdicts


def line(verdict: Verdict) -> str:
    """A verdict as text."""
    return f"{'ok    ' if verdict.held else 'WRONG '} {verdict.what}: {verdict.seen}"


def real(names: tuple[str, ...], model: Path | None) -> dict[str, Any]:
    """Everything, on a CUDA machine."""
    began = time.monotonic()
    import torch

    with tempfile.TemporaryDirectory(prefix="outsize-gpu-") as scratch:
        os.environ["OUTSIZE_CACHE"] = str(Path(scratch) / "cache")
        folder = model or Path(scratch) / "opt-6.7b"
        making = None
        if model is None:  # while the small models are checked
            command = [sys.executable, str(HERE / "make_checkpoint.py"), "opt-6.7b", str(folder)]
            making = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            verdicts = list(gpu_parity.driver_checks())
            verdicts += check_parity(names, torch.cuda.device_count(), began + PARITY_S)
            torch.cuda.empty_cache()
            if making is not None and making.wait(timeout=240):
                raise SystemExit("gpu_check: the checkpoint could not be made")
            say("probe ...")
            probe = last_json([sys.executable, "-m", "outsize", "probe", "--path", str(folder), "--json"], 120)
            rows = times(folder, probe.get("profile", {}), began + TOTAL_S)
        finally:
            if making is not None and making.poll() is None:
                making.kill()
            if model is None:
                shutil.rmtree(folder, ignore_errors=True)
    verdicts += budget_checks(rows)
    verdicts += [Verdict(f"{r['home']}, {r['engine']}", False, r["failure"]) for r in rows if "failure" in r]
    names_of = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": {**report.machine(), "gpus": names_of, "torch": torch.__version__},
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "probe": probe,
        "times": rows,
        "seconds": time.monotonic() - began,
    }


def emulated(names: tuple[str, ...]) -> dict[str, Any]:
    """The parity checks alone, on emulated GPUs."""
    began = time.monotonic()
    os.environ["OUTSIZE_EMULATE_GPUS"] = EMULATED
    verdicts = check_parity(names, len(EMULATED.split(",")), began + TOTAL_S)
    seconds = time.monotonic() - began
    return {"machine": report.machine(), "verdicts": [asdict(v) for v in verdicts], "times": [], "seconds": seconds}


def main() -> int:
    """Command line; 1 where a check failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulate", action="store_true", help="only the small models, on emulated GPUs")
    parser.add_argument("--models", default=",".join(gpu_parity.NAMES), help="small models, comma-separated")
    parser.add_argument("--checkpoint", type=Path, help="an OPT-6.7B shape made earlier (default: made, then deleted)")
    parser.add_argument(
        "--out", nargs="?", const=_AUTOMATIC, help="write the JSON, to bench/results/<date>-<machine>.json by default"
    )
    arguments = parser.parse_args()
    names = tuple(arguments.models.split(","))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.emulate:
        result = emulated(names)
    else:
        import torch

        if not torch.cuda.is_available():
            say(f"gpu_check: torch {torch.__version__} sees no CUDA device here; --emulate checks what needs none")
            return 1
        result = real(names, arguments.checkpoint)
    result = {"schema": 1, "benchmark": "gpu-check", "emulated": arguments.emulate, **result}
    verdicts = [Verdict(**verdict) for verdict in result["verdicts"]]
    print("\n".join(line(verdict) for verdict in verdicts))
    if result["times"]:
        print("\n".join(times_table(result["times"])))
    wrong = sum(not verdict.held for verdict in verdicts)
    print(f"{len(verdicts) - wrong} of {len(verdicts)} checks held, in {result['seconds']:.0f} s")
    if arguments.out:
        automatic = HERE / "results" / report.result_name().replace(".json", "-gpu.json")
        path = automatic if arguments.out == _AUTOMATIC else Path(arguments.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if wrong or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
