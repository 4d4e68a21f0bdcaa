"""All weights in memory, one prompt, end to end: the engines of ``decode.py`` and ``prefill.py``, type by type.

Each engine runs in a process of its own, generates two tokens to warm up, and is then timed. llama.cpp gets a GGUF of
the same shape in its like type, made by its own quantiser with its own defaults.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import engines
import physical
from engines import Engine, Run
from report import GIB, machine
from shapes import config_of

SHAPE = "llama-7b"
TYPES = {"bf16": ("native", ""), "int8": ("int8", "Q8_0"), "int4": ("int4", "Q4_0")}
_RESERVE = 3 * GIB // 2  # of RAM, for the system
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Entry:
    """One engine with one type of weights."""

    kind: str
    engine: Engine


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that both benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES), help="comma-separated")
    parser.add_argument("--only", default="outsize,llama.cpp,transformers", help="engines, comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder(), help="where the checkpoints are")
    parser.add_argument("--shape", default=SHAPE)
    parser.add_argument("--out", nargs="?", const="", help="keep the JSON, in bench/results/ by default")
    return parser


def ram_bytes() -> int:
    """What an engine may use: all of it but a reserve."""
    total: int = machine()["ram_bytes"]
    return total - _RESERVE


def lineup(options: argparse.Namespace, new_tokens: int, *more: str) -> list[Entry]:
    """The engines with their checkpoints, made where missing. ``more``: arguments for all of them."""
    only, folder, shape = options.only.split(","), options.folder, options.shape
    found: list[Entry] = []
    for kind in options.types.split(","):
        weights, quantised = TYPES[kind]
        native = checkpoints.ensure(folder, shape) if weights == "native" else None
        if "outsize" in only:
            model = native or checkpoints.ensure_converted(folder, shape, weights)
            found.append(Entry(kind, engines.outsize(model, new_tokens, ram_bytes() - GIB // 4, "--warm", *more)))
        if "transformers" in only and native is not None:
            found.append(Entry(kind, engines.transformers(native, new_tokens, "--warm", *more)))
        if "llama.cpp" in only:
            gguf = (
                checkpoints.ensure_quantised_gguf(folder, shape, quantised)
                if quantised
                else checkpoints.ensure_gguf(folder, shape)
            )
            found.append(Entry(kind, engines.llamacpp(gguf, new_tokens, "--warm", *more)))
    return found


def measure(entries: list[Entry], rounds: int) -> list[dict[str, Any]]:
    """Every entry in turn, round after round; each run with the memory's rate just before and just after it."""
    rows: list[dict[str, Any]] = []
    rate = physical.memory_rate()
    for _ in range(rounds):
        for entry in entries:
            run = entry.engine.run(ram_bytes(), _TIMEOUT_S)
            after = physical.memory_rate()
            rows.append(_row(entry, run, statistics.mean((rate, after))))
            rate = after
            print(f"{entry.engine.name} {entry.kind}: {_figure(rows[-1])}", file=sys.stderr, flush=True)
    return rows


def median(rows: list[dict[str, Any]], engine: str, kind: str, key: str) -> float | None:
    """The median of a figure over the runs of one entry; None where it did not run, or failed."""
    values = [row[key] for row in rows if (row["engine"], row["kind"]) == (engine, kind) and not row["failure"]]
    return statistics.median(values) if values else None


def _row(entry: Entry, run: Run, memory_rate: float) -> dict[str, Any]:
    row = {"engine": entry.engine.name, "kind": entry.kind, "failure": run.failure, "memory_bytes_per_s": memory_rate}
    row["stored_bytes"] = checkpoints.stored_bytes(entry.engine.model)
    if not run.failure:
        tokens = run.printed["token_s"]
        row |= {
            "token_s": statistics.median(tokens) if tokens else 0.0,
            "token_s_all": tokens,
            "first_token_s": run.printed["first_token_s"],
            "peak_rss_bytes": run.printed["peak_rss_bytes"],
            "bf12": run.printed.get("bf12", False),
            "predicted_token_s": run.printed.get("predicted_token_s"),
        }
    return row


def _figure(row: dict[str, Any]) -> str:
    return row["failure"] or f"{row['first_token_s']:.2f} s, then {row['token_s']:.4f} s/token"


def embedding_bytes(shape: str) -> int:
    """Bytes of the embedding, of which a token needs a row."""
    config = config_of(shape)
    return int(config["vocab_size"] * config["hidden_size"] * 2)


def block_parameters(shape: str) -> int:
    """Parameters that every token of a prompt is multiplied with, of a Llama."""
    config = config_of(shape)
    hidden, kv = config["hidden_size"], config["num_key_value_heads"] / config["num_attention_heads"]
    block = hidden * hidden * (2 + 2 * kv) + 3 * hidden * config["intermediate_size"]
    return int(config["num_hidden_layers"] * block)
