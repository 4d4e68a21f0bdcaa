"""The GPU check as a script: on emulated GPUs, and where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu_check.py"


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | environ
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, env=environment
    )


def test_answers_are_right_on_emulated_gpus(tmp_path: Path) -> None:
    done = run("--emulate", "--models", "llama", "--out", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert [verdict["held"] for verdict in printed["verdicts"]] == [True] * 4
    assert json.loads((tmp_path / "out.json").read_text()) == printed


def test_without_a_gpu_it_says_so() -> None:
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
