"""Predicted against measured, over a grid: shapes, formats, resident and spilled, one sequence and sixteen.

    python bench/predictions.py              27 runs; probe the machine first, while it is idle

The machine is calibrated by ``outsize probe``, on other shapes than these. Each run is a process of its own. The table
goes to stdout: what was predicted, what was measured, the factor between them; the last line there is a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import checkpoints
import report

from outsize.evals.benchmark import Case, Figure, Result, measure_apart, prepared
from outsize.machine.detect import identity
from outsize.machine.profile import load_profile, profile_path

SHAPES = ("opt-1.3b", "opt-6gb", "llama-6gb")
FORMATS = ("native", "int8", "int4")
HELD = (1.0, 0.5, 0.15)  # share of the weights that memory is given for
SEQUENCES = ((1, 112), (16, 112), (1, 1008))  # batch, prompt; 16 tokens more
TOKENS = 16
REPEATS = 2
BOUNDS = {"decode": 0.12, "prefill": 0.15, "load": 0.15, "score": 0.15}
TIMEOUT_S = 300


def cases(folder: Path, shapes: list[str]) -> list[tuple[str, Case]]:
    """Every shape, format and share of the weights in memory; sequences in turn. With what each is called."""
    found = []
    turns = itertools.cycle(SEQUENCES)
    for shape, weights, held in itertools.product(shapes, FORMATS, HELD):
        batch, prompt = next(turns)
        case = Case(str(checkpoints.ensure(folder, shape)), weights, None, prompt, TOKENS, batch, REPEATS, no_gpu=True)
        if held < 1:
            usage = prepared(case).plan.usage["ram"]
            case = replace(case, ram=str(int(usage.total_bytes - (1 - held) * usage.weights_bytes)))
        found.append((f"{shape} {weights}, {held:.0%} in memory, {batch} x {prompt}", case))
    return found


def factor(figure: Figure | None) -> float:
    """Measured over predicted."""
    return 0.0 if figure is None else statistics.median(figure.measured_s) / figure.predicted_s


def line(name: str, result: Result) -> str:
    """One run."""
    if result.error:
        return f"{name:52} {result.error}"
    parts = []
    for word in BOUNDS:
        figure: Figure = getattr(result, word)
        seconds = statistics.median(figure.measured_s)
        parts.append(f"{word} {seconds:8.3f} s ({figure.predicted_s:8.3f}) x{factor(figure):5.2f}")
    memory = f"memory {result.peak_bytes / result.planned_bytes:4.0%}"
    return f"{name:52} {'  '.join(parts)}  {memory}"


def main() -> int:
    """Command line; 1 where a run failed, 2 where nobody probed this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--most", type=int, default=1000, help="runs")
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    options = parser.parse_args()
    kept = load_profile(profile_path(), identity())
    if kept.profile is None:
        print(kept.reason, file=sys.stderr)
        return 2
    results = []
    for name, case in cases(options.folder, options.shapes.split(","))[: options.most]:
        results.append((name, measure_apart(case, TIMEOUT_S)))
        print(line(*results[-1]), flush=True)
    good = [result for _, result in results if not result.error]
    shares = {}
    for word, bound in BOUNDS.items():
        near = [abs(factor(getattr(result, word)) - 1) <= bound for result in good]
        shares[word] = sum(near) / max(len(near), 1)
        print(f"{word}: within {bound:.0%} of the prediction in {sum(near)} of {len(near)} runs")
    over = sum(result.peak_bytes > result.planned_bytes for result in good)
    print(f"peak memory above what was planned: {over} of {len(good)} runs")
    outcome = {
        "schema": 1,
        "benchmark": "predictions",
        "machine": report.machine(),
        "profile": asdict(kept.profile),
        "within": shares,
        "above_planned_memory": over,
        "runs": [
            {"name": name, **asdict(result), "case": asdict(replace(result.case, model=""))} for name, result in results
        ],
    }
    if options.out is not None:
        report.keep(outcome, options.out)
    print(json.dumps(outcome))
    return 0 if len(good) == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
