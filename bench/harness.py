"""outsize beside lm-evaluation-harness' own ``hf`` backend: the same tasks, the bundled model in float32.

    python bench/harness.py            examples/harness: 400 documents of each task, ten minutes of one core
    python bench/harness.py --limit 40

Both evaluate the tasks of ``examples/harness`` (choices with and without examples, whole texts, answers), the harness
in batches, outsize from disk (every block streamed) and from memory. Of every document the log-likelihoods and texts
are compared, not only the metrics.

The hf backend runs as it comes, for metrics, texts and greedy flags, and twice more for log-likelihoods: with
``softmax_dtype=float64``, so that its sums are not rounded to float32 (they are summed in float64 by outsize, and one
of 700 nats has steps of 6e-5 there), which is what outsize is held against; and with the whole model in float64, which
says how far from the truth both are. A table goes to stdout, and the last line there is a JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from report import machine
from safetensors.torch import load_file, save_file

from outsize.evals.harness import OutsizeLM

ROOT = Path(__file__).parents[1]
BUNDLED = Path(str(resources.files("outsize"))) / "demo_model"
SCORED = ("words_choice", "words_guess", "words_text")
TASKS = (*SCORED, "words_answer")
WITHIN = 1e-4
SUMMED = "hf, sums in float64"


def float32(folder: Path) -> Path:
    """The bundled model in float32; its tokenizer says that a newline ends a text, which the hf backend asks for."""
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor.float() for name, tensor in load_file(BUNDLED / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name, changes in (("config.json", {"dtype": "float32"}), ("tokenizer_config.json", {"eos_token": "\n"})):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**known, **changes}))
    return folder


def evaluate(model: Any, limit: int | None, tasks: Sequence[str] = TASKS) -> Any:
    """The harness' results, samples included."""
    manager = TaskManager(include_path=ROOT / "examples" / "harness", include_defaults=False)
    with contextlib.redirect_stdout(sys.stderr):
        return lm_eval.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0
        )


def compare(mine: Any, others: dict[str, Any], task: str) -> dict[str, Any]:
    """Metrics of outsize and of the hf backend as it comes, and how far single documents are apart."""
    found: dict[str, Any] = {"documents": len(mine["samples"][task]), "metrics": {}}
    for name, value in mine["results"][task].items():
        if isinstance(value, float):
            theirs = float(others["hf"]["results"][task][name])
            found["metrics"][name.partition(",")[0]] = {"outsize": float(value), "hf": theirs}
    apart = [a != b for a, b in zip(rest(mine, task), rest(others["hf"], task), strict=True)]
    found["texts_and_flags"] = {"compared": len(apart), "different": sum(apart)}
    if task in SCORED:
        truth, ours = numbers(others["hf, float64"], task), numbers(mine, task)
        found["log_likelihoods"] = len(ours)
        found["largest"] = max(map(abs, truth))
        found["largest_difference"] = {name: furthest(ours, numbers(other, task)) for name, other in others.items()}
        found["hf_from_float64"] = furthest(numbers(others["hf"], task), truth)
    return found


def furthest(some: list[float], others: list[float]) -> float:
    """The largest difference."""
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def numbers(results: Any, task: str) -> list[float]:
    """All log-likelihoods."""
    return [one for sample in results["samples"][task] for one in flat(sample["resps"]) if isinstance(one, float)]


def rest(results: Any, task: str) -> list[Any]:
    """What else there is: requests, texts, and whether every token was the likeliest."""
    answers = [one for sample in results["samples"][task] for one in flat(sample["resps"])]
    asked = [str(sample["arguments"]) for sample in results["samples"][task]]
    return [*asked, *(one for one in answers if not isinstance(one, float))]


def flat(answers: Any) -> list[Any]:
    """Numbers, texts and truth values of an answer."""
    return [one for inner in answers for one in flat(inner)] if isinstance(answers, list | tuple) else [answers]


def checks(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is to be shown, each with what was found."""
    rows = []
    for where, by_task in found.items():
        for task, figures in by_task.items():
            for name in ("acc", "acc_norm", "exact_match"):
                both = figures["metrics"].get(name)
                if both:
                    have, want = both["outsize"], both["hf"]
                    rows.append(
                        {"what": f"{where}: {task}, {name}", "want": want, "have": have, "met": bool(have == want)}
                    )
            if task in SCORED:
                off = figures["largest_difference"][SUMMED]
                what = f"{where}: {task}, largest difference of a log-likelihood"
                rows.append({"what": what, "want": WITHIN, "have": off, "met": off <= WITHIN})
            different = figures["texts_and_flags"]["different"]
            what = f"{where}: {task}, requests, texts and greedy flags that differ"
            rows.append({"what": what, "want": 0, "have": different, "met": different == 0})
    return rows


def main() -> int:
    """Command line; 1 where something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="documents of each task (default: all 400)")
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    options = parser.parse_args()
    os.chdir(ROOT)  # the tasks name their data from here
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = float32(Path(folder) / "model")
        hf = {"device": "cpu", "batch_size": 32}
        others = {
            "hf": evaluate(HFLM(str(model), dtype="float32", **hf), options.limit),
            SUMMED: evaluate(HFLM(str(model), dtype="float32", softmax_dtype="float64", **hf), options.limit, SCORED),
            "hf, float64": evaluate(HFLM(str(model), dtype="float64", **hf), options.limit, SCORED),
        }
        for where, limits in (("disk", {"ram": 0}), ("ram", {})):
            mine = evaluate(OutsizeLM(str(model), no_gpu=True, weight_limits=limits), options.limit)
            found[where] = {task: compare(mine, others, task) for task in TASKS}
    result = {
        "schema": 1,
        "benchmark": "harness",
        "machine": machine(),
        "versions": {"lm_eval": lm_eval.__version__, "transformers": others["hf"]["transformers_version"]},
        "model": "the bundled model in float32",
        "tasks": found,
        "checks": checks(found),
    }
    for row in result["checks"]:
        have = f"{row['have']:.6g}" if isinstance(row["have"], float) else row["have"]
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['what']}: {have} (wanted {row['want']:.6g})")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(row["met"] for row in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
