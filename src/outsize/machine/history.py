"""What runs were predicted to take and took, kept beside the profile: how far the next prediction can be trusted."""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from outsize.files import write_whole
from outsize.machine.profile import Identity
from outsize.paths import outsize_cache

MOST_BYTES = 200_000  # of the file: some thousand runs; the older half goes then
MOST_RUNS = 50  # that an accuracy is made of, the latest
Kind = str  # "token", "first token" or "dataset"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of ``runs`` predictions: the median of how far they were off, as a factor (1.1: a tenth more, or less)."""

    runs: int
    factor: float


def history_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where runs are kept."""
    return outsize_cache(environ) / "history.jsonl"


def remember(
    path: Path, identity: Identity, model: str, weights: str, seconds: Mapping[Kind, tuple[float, float]]
) -> None:
    """Adds a run: predicted and measured seconds by kind. A file that cannot be written is done without."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = {"date": date, "machine": asdict(identity), "model": model, "weights": weights, "seconds": dict(seconds)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MOST_BYTES:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_whole(path, "".join(lines[len(lines) // 2 :]))
        with path.open("a", encoding="utf-8") as file:  # one short write: runs side by side do not mix their lines
            file.write(json.dumps(run) + "\n")


def accuracy(path: Path, identity: Identity) -> dict[Kind, Accuracy]:
    """How good the latest predictions on this machine, with this software, were. Damaged lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    factors: dict[Kind, list[float]] = {}
    for line in lines:
        with suppress(ArithmeticError, ValueError, TypeError, KeyError, AttributeError):
            run = json.loads(line)
            if run["machine"] == asdict(identity):
                for kind, (predicted, measured) in run["seconds"].items():
                    off = abs(math.log(measured / predicted))
                    factors.setdefault(str(kind), []).append(off)
    return {
        kind: Accuracy(min(len(offs), MOST_RUNS), math.exp(statistics.median(offs[-MOST_RUNS:])))
        for kind, offs in factors.items()
    }
