"""Small datasets for the bundled model, and how their commands are run."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from outsize.cli.main import main

DEMO = Path(str(resources.files("outsize"))) / "demo_model"
PROMPTS: list[dict[str, Any]] = [json.loads(line) for line in (DEMO / "heldout.jsonl").read_text().splitlines()]


def score_lines(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"s{row['id']}", "context": row["prompt"], "choices": [" no\n", row["answer"]]}
        for row in PROMPTS[:count]
    ]


def batch_lines(count: int) -> list[dict[str, Any]]:
    return [{"id": f"b{row['id']}", "prompt": row["prompt"]} for row in PROMPTS[:count]]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def arguments(command: str, data: Path | str, out: Path | None, *more: str) -> list[str]:
    where = [] if out is None else ["--out", str(out)]
    return [command, str(DEMO), str(data), *where, "--no-gpu", "--weight-limit", "ram=1MiB", *more]


def run(command: str, data: Path | str, out: Path | None, *more: str) -> int:
    return main(arguments(command, data, out, *more))
