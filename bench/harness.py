"""outsize beside lm-evaluation-harness' own ``hf`` backend: the same tasks, the bundled model in float32.

    python bench/harness.py            examples/harness: 400 documents of each task; minutes
    python bench/harness.py --limit 40

Both evaluate the tasks of ``examples/harness`` (choices with and without examples, whole texts, answers), the harness
in batches, outsize from disk (every block streamed) and from memory. Of every document the log-likelihoods and texts
are compared, not only the metrics. The hf backend is as it comes: it sums in float32 what outsize sums in float64. A
table goes to stdout, and the last line there is a JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from report import machine
from safetensors.torch import load_file, save_file

from outsize.interfaces.harness import OutsizeLM

ROOT = Path(__file__).parents[1]
BUNDLED = Path(str(resources.files("outsize"))) / "demo_model"
TASKS = ("words_choice", "words_guess", "words_text", "words_answer")
WITHIN = 1e-4


def float32(folder: Path) -> Path:
    """The bundled model in float32; its tokenizer says that a newline ends a text, which the hf backend asks for."""
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor.float() for name, tensor in load_file(BUNDLED / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name, changes in (("config.json", {"dtype": "float32"}), ("tokenizer_config.json", {"eos_token": "\n"})):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**known, **changes}))
    return folder


def evaluate(model: Any, limit: int | None) -> Any:
    """The harness' results, samples included."""
    manager = TaskManager(include_path=ROOT / "examples" / "harness", include_defaults=False)
    with contextlib.redirect_stdout(sys.stderr):
        return lm_eval.simple_evaluate(
            model=model, tasks=list(TASKS), task_manager=manager, limit=limit, bootstrap_iters=0
        )


def compare(mine: Any, other: Any, task: str) -> dict[str, Any]:
    """Metrics of both, and how far single documents are apart."""
    found: dict[str, Any] = {"documents": len(mine["samples"][task]), "metrics": {}}
    for name, value in mine["results"][task].items():
        if isinstance(value, float):
            found["metrics"][name.partition(",")[0]] = {"outsize": value, "hf": float(other["results"][task][name])}
    numbers, same, differ = [], 0, 0
    for here, there in zip(mine["samples"][task], other["samples"][task], strict=True):
        if here["arguments"] != there["arguments"]:
            raise SystemExit(f"{task}: the requests differ")
        for ours, theirs in zip(flat(here["resps"]), flat(there["resps"]), strict=True):
            if isinstance(ours, float):
                numbers.append((ours, theirs))
            else:  # a text, or whether every token was the likeliest
                same, differ = same + (ours == theirs), differ + (ours != theirs)
    if numbers:
        found["log_likelihoods"] = len(numbers)
        found["largest"] = max(abs(theirs) for _, theirs in numbers)
        found["largest_difference"] = max(abs(ours - theirs) for ours, theirs in numbers)
    if same + differ:
        found["others"] = {"same": same, "different": differ}
    return found


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
                    rows.append({"what": f"{where}: {task}, {name}", "want": want, "have": have, "met": bool(have == want)})
            off = figures.get("largest_difference")
            if off is not None:
                what = f"{where}: {task}, largest difference of a log-likelihood"
                rows.append({"what": what, "want": f"<= {WITHIN}", "have": off, "met": bool(off <= WITHIN)})
            others = figures.get("others", {"different": 0})["different"]
            what = f"{where}: {task}, texts and greedy flags that differ"
            rows.append({"what": what, "want": 0, "have": others, "met": bool(others == 0)})
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
        other = evaluate(HFLM(str(model), device="cpu", dtype="float32", batch_size=32), options.limit)
        for where, limits in (("disk", {"ram": 0}), ("ram", {})):
            mine = evaluate(OutsizeLM(str(model), no_gpu=True, weight_limits=limits), options.limit)
            found[where] = {task: compare(mine, other, task) for task in TASKS}
    result = {
        "schema": 1,
        "benchmark": "harness",
        "machine": machine(),
        "versions": {"lm_eval": lm_eval.__version__, "transformers": other["transformers_version"]},
        "model": "the bundled model in float32",
        "tasks": found,
        "checks": checks(found),
    }
    for row in result["checks"]:
        have = f"{row['have']:.6g}" if isinstance(row["have"], float) else row["have"]
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['what']}: {have} (wanted {row['want']})")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if all(row["met"] for row in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
