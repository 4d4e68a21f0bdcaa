"""The engines that are compared: how each is started, and what came of a run.

Each runs in a process of its own, in its own cgroup, and prints one JSON line at the end (``peers/measure.py``).
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cgroup

_PEERS = Path(__file__).parent / "peers"
_THREADS = str(os.cpu_count() or 1)


@dataclass(frozen=True)
class Run:
    """One run of one engine: what it printed and what the cgroup saw; or why it failed."""

    engine: str
    failure: str
    printed: dict[str, Any]
    outcome: dict[str, Any]
    disk_bytes_per_s: float = math.nan  # what the disk gave around this run, filled in by who measured it


@dataclass(frozen=True)
class Engine:
    """An engine's name, its script and its arguments after the model."""

    name: str
    script: str
    model: Path
    new_tokens: int
    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line, in this very Python."""
        common = ["--new-tokens", str(self.new_tokens), "--threads", _THREADS]
        return [sys.executable, str(_PEERS / self.script), str(self.model), *common, *self.options]

    def run(self, limit: int, timeout: float) -> Run:
        """Run once under ``limit`` bytes of memory."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        outcome = cgroup.run(self.command(), limit, timeout, environment)
        kept = asdict(replace(outcome, stdout="", stderr=""))
        del kept["stdout"], kept["stderr"]
        lines = outcome.stdout.strip().splitlines()
        if outcome.returncode == 0 and lines:
            return Run(self.name, "", json.loads(lines[-1]), kept)
        return Run(self.name, _why(outcome), {}, kept)


def _why(outcome: cgroup.Outcome) -> str:
    if outcome.timed_out:
        return f"not done after {outcome.seconds:.0f} s"
    if outcome.oom_kills:
        return f"killed: more than {outcome.limit_bytes / 2**30:.2f} GiB"
    last = (outcome.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit {outcome.returncode}: {last}"


def outsize(model: Path, new_tokens: int, ram_bytes: int, *more: str) -> Engine:
    """This project, with a budget for its whole process."""
    return Engine("outsize", "outsize_run.py", model, new_tokens, ("--ram-bytes", str(ram_bytes), *more))


def accelerate(model: Path, new_tokens: int, cpu_bytes: int, *more: str) -> Engine:
    """The disk offload of accelerate, with a limit on weights in RAM."""
    return Engine("accelerate", "accelerate_run.py", model, new_tokens, ("--cpu-bytes", str(cpu_bytes), *more))


def llamacpp(model: Path, new_tokens: int, *more: str) -> Engine:
    """llama.cpp over mmap."""
    return Engine("llama.cpp", "llamacpp_run.py", model, new_tokens, more)


def transformers(model: Path, new_tokens: int, *more: str) -> Engine:
    """transformers alone, all weights in RAM."""
    return Engine("transformers", "transformers_run.py", model, new_tokens, more)
