"""One model in one format under one memory limit, measured beside what was predicted: a process of its own for each.

``python -m outsize.evals.benchmark CASE`` prints the result of a case, both as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outsize.api import prepare
from outsize.engine.loader import Opening, check_fits, open_model
from outsize.engine.request import ScoreRequest
from outsize.errors import OutsizeError
from outsize.options import LoadOptions
from outsize.planner.sweep_cost import SweepCost, Turn

SCORED = 8  # sequences of a prompt's length, half of it scored
SAID = "outsize: "  # before the line of an error


@dataclass(frozen=True, slots=True)
class Case:
    """What to measure. ``prompt`` and ``tokens`` of each of ``batch`` sequences; ``repeats`` of all but the load."""

    model: str
    weights: str = "native"
    ram: str | None = None
    prompt: int = 512
    tokens: int = 128
    batch: int = 1
    repeats: int = 3
    no_gpu: bool = False
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """Predicted and measured seconds of ``tokens`` tokens. ``limit_s``: what physics allows, where that is known."""

    tokens: int
    predicted_s: float
    measured_s: tuple[float, ...]
    limit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """A case's figures, and its peak of memory; or, with nothing of these, the ``error``."""

    case: Case
    load: Figure | None = None  # to the first token of the prompt, from the start of the load in a new process
    prefill: Figure | None = None
    decode: Figure | None = None
    score: Figure | None = None
    planned_bytes: int = 0
    peak_bytes: int = 0
    disk_bytes_per_token: int = 0
    error: str = ""


def prepared(case: Case, **callbacks: Any) -> Opening:
    """All that is decided before a case is measured. Downloads and converts what is not there."""
    options = LoadOptions(
        weights=case.weights,
        context=case.prompt + case.tokens,
        prompt=case.prompt,
        batch=case.batch,
        ram=case.ram,
        no_gpu=case.no_gpu,
        revision=case.revision,
    )
    return prepare(case.model, options, **callbacks)


def measure(case: Case) -> Result:
    """Measures a case in this process, which should have done nothing before. Raises DoesNotFit and the like."""
    opening = prepared(case)
    check_fits(opening.spec, opening.plan)
    plan = opening.plan
    began = time.monotonic()
    model: Any = open_model(opening)
    try:
        from outsize.probe.timed_generation import timed_generation

        first = timed_generation(model, case.prompt, 2, case.batch)
        loaded = time.monotonic() - began - first.token_s
        runs = [timed_generation(model, case.prompt, case.tokens, case.batch) for _ in range(case.repeats)]
        score = _scoring(model, case)
        cost = SweepCost.of(opening.spec, opening.machine, plan)
        past = case.prompt + case.tokens // 2
        together = opening.spec.encoder_decoder
        turn = Turn(case.batch, 1, 1 if together else past, case.batch, encoded=case.prompt if together else 0)
        prompts = Turn(case.batch, case.prompt, 0, case.batch, first=True)
        return Result(
            case,
            load=Figure(case.batch, plan.predicted.first_token_s, (loaded,)),
            prefill=Figure(case.batch * case.prompt, cost.sweep_s([prompts]), tuple(run.first_s for run in runs)),
            decode=Figure(case.batch, cost.sweep_s([turn]), tuple(run.token_s for run in runs), _least_s(opening)),
            score=score,
            planned_bytes=plan.usage["ram"].total_bytes,
            peak_bytes=model.outsize.stats.peak_ram_bytes,
            disk_bytes_per_token=plan.predicted.disk_bytes_per_token,
        )
    finally:
        model.outsize.close()


def _scoring(model: Any, case: Case) -> Figure:
    """Scoring a small dataset, once."""
    from outsize.probe.timed_generation import random_prompt

    half = max(case.prompt // 2, 1)
    rows = random_prompt(model, case.prompt, SCORED).tolist()
    requests = [
        ScoreRequest(str(i), tuple(row[:half]), (tuple(row[half:]) or (row[0],),)) for i, row in enumerate(rows)
    ]
    predicted = model.outsize.predict(requests).seconds
    began = time.monotonic()
    failed = next((result.error for result in model.outsize.score(requests) if result.error), "")
    if failed:
        raise OutsizeError(f"scoring failed: {failed}")
    return Figure(SCORED * case.prompt, predicted, (time.monotonic() - began,))


def _least_s(opening: Opening) -> float:
    """Seconds that a token takes at the least: bytes from the drive at its rate, or weights in memory at that one's."""
    machine, plan = opening.machine, opening.plan
    held: dict[str, int] = {}
    for group in plan.groups:
        if group.use and group.tier != "disk":
            held[group.tier] = held.get(group.tier, 0) + group.rest_bytes
    memory = sum(nbytes / machine.device(tier).bytes_per_s for tier, nbytes in held.items())
    return max(plan.predicted.disk_bytes_per_token / machine.disk.bytes_per_s, memory)


def measure_apart(case: Case, timeout_s: float | None = None) -> Result:
    """Measures a case in a new process, whose memory and imports are its own. What goes wrong is in the result."""
    command = [sys.executable, "-m", "outsize.evals.benchmark", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
        return Result(case, error=(said or lines or [f"exit {done.returncode}"])[-1])
    return from_json(json.loads(done.stdout.strip().splitlines()[-1]))


def from_json(stored: dict[str, Any]) -> Result:
    """The result that ``asdict`` made of one."""
    figures = {
        name: None
        if stored[name] is None
        else Figure(**stored[name] | {"measured_s": tuple(stored[name]["measured_s"])})
        for name in ("load", "prefill", "decode", "score")
    }
    return Result(**stored | figures | {"case": Case(**stored["case"])})


def main(argv: Sequence[str]) -> int:
    """Prints the result of the case in ``argv``; its errors go to standard error, with their exit code."""
    try:
        sys.stdout.write(f"{json.dumps(asdict(measure(Case(**json.loads(argv[0])))))}\n")
    except OutsizeError as error:
        sys.stderr.write(f"{SAID}{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
