"""Results of the harness: a table, one JSON object, files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval.utils import handle_non_serializable, sanitize_list

from outsize.cli.table import table as text_table
from outsize.errors import OutsizeError
from outsize.evals.dataset_run import Effort
from outsize.files import write_whole

SCHEMA = 1
SHOWN = (
    "results",
    "groups",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
    "lm_eval_version",
)


def table(results: Mapping[str, Any]) -> str:
    """A line for each metric of each task, groups before what they hold. Widths as the longest cell.

    The harness' own table depends on a library that prints it differently from version to version.
    """
    rows = [("task", "shots", "filter", "metric", "value", "stderr", "better")]
    for name, depth in _in_order(results):
        found = results["results"][name]
        better = results.get("higher_is_better", {}).get(name, {})
        shown = "  " * depth + str(found.get("alias", name)).strip()
        shots = str(results.get("n-shot", {}).get(name, ""))
        for key in sorted(key for key in found if "," in key):
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr"):
                continue
            stderr = found.get(f"{metric}_stderr,{filtered}")
            way = {True: "higher", False: "lower"}.get(better.get(metric), "")
            rows.append((shown, shots, filtered, metric, _number(found[key]), _number(stderr), way))
            shown = shots = ""
    return "\n".join(text_table(rows))


def _in_order(results: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names that have results, each once, with how deep they stand in groups."""
    children: Mapping[str, Sequence[str]] = results.get("group_subtasks", {})
    inside = {child for several in children.values() for child in several}
    coming = [(name, 0) for name in sorted({*results["results"], *children} - inside, reverse=True)]
    while coming:
        name, depth = coming.pop()
        if name in results["results"]:
            yield name, depth
        coming += [(child, depth + 1) for child in sorted(children.get(name, ()), reverse=True)]


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "" if value is None or value == "N/A" else str(value)
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def as_json(results: Mapping[str, Any], model: Mapping[str, Any], effort: Effort) -> str:
    """One object: the model, results as the harness has them, and what they took."""
    shown = {name: results[name] for name in SHOWN if results.get(name) is not None}
    return _dumped({"schema": SCHEMA, **model, **shown, **asdict(effort)})


def write_files(folder: Path, results: Mapping[str, Any], effort: Effort) -> list[Path]:
    """``results_TIME.json`` and a ``samples_TASK_TIME.jsonl`` for each task whose samples were kept.

    The files are the harness' own in name and content, with what it took beside it. Raises OutsizeError where they
    cannot be written.
    """
    moment = datetime.now().isoformat().replace(":", "-")
    texts = {f"results_{moment}.json": {**results, "outsize": asdict(effort)}}
    texts[f"results_{moment}.json"].pop("samples", None)
    files = {name: _dumped(text, indent=2) for name, text in texts.items()}
    for task, samples in results.get("samples", {}).items():
        lines = [_dumped(_plain(sample)) + "\n" for sample in samples]
        files[f"samples_{task}_{moment}.jsonl"] = "".join(lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text)
    except OSError as error:
        raise OutsizeError(f"{folder}: results cannot be written ({error.strerror})", remedy="another --out") from error
    return [folder / name for name in files]


def _plain(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as the harness writes it: arguments by name, so that every line of a file has the same columns."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(given)}
        for i, given in enumerate(sample["arguments"])
    }
    listed = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
    return {**sample, **listed, "arguments": arguments, "target": str(sample["target"])}


def _dumped(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are none become null."""
    plain = json.loads(json.dumps(value, default=handle_non_serializable))
    return json.dumps(_finite(plain), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
