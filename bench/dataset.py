"""Whole datasets: scoring many prompts in one sweep, generating for many with one sweep per token.

    python bench/dataset.py --small     64 prompts scored, 16 x 4 tokens generated; 2.6 GB in 2.25 GiB
    python bench/dataset.py --out       512 prompts scored, 64 x 32 tokens generated; figures go to bench/results/

outsize, accelerate's disk offload and lm-evaluation-harness' ``hf`` backend (over the model that accelerate has placed)
get the same prompts under the same memory cgroup. Bytes are the kernel's count for the process (/proc/self/io), behind
the load. The slow peers compute a part of the dataset, a whole number of their batches, and are scaled up to all of it;
the table says of how much. The harness scores only: it generates as accelerate does. Then the scheduler's own cost: 64
micro-batches of a small resident model through it, and one after another. The last line of stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import checkpoints
import report
from engines import Engine, Run
from report import GIB

_HEADROOM = 64 << 20
_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Variant:
    """One size of the benchmark. ``measured``: prompts and tokens that the slow peers compute."""

    name: str
    shape: str
    limit_bytes: int
    cpu_bytes: int  # of weights, for accelerate
    scored: int
    generated: int
    new_tokens: int
    measured_scored: int
    measured_generated: int
    measured_tokens: int
    batch: int  # of the peers
    timeout_s: float


FULL = Variant("full", "opt-1.3b", 9 * GIB // 4, GIB // 2, 512, 64, 32, 64, 32, 4, 32, 900)
SMALL = Variant("small", "opt-1.3b", 9 * GIB // 4, GIB // 2, 64, 16, 4, 16, 16, 2, 16, 300)


class Peer(Engine):
    """An engine with a command line of its own."""

    def command(self) -> list[str]:
        return [sys.executable, str(_PEERS / self.script), str(self.model), *self.options]


def lineup(variant: Variant, model: Path, task: str, shared: float) -> list[Peer]:
    """The engines for a task."""
    prompts = variant.scored if task == "score" else variant.generated
    part = variant.measured_scored if task == "score" else variant.measured_generated
    common = ("--task", task, "--prompts", str(prompts), "--threads", str(os.cpu_count() or 1), "--shared", str(shared))
    common += ("--new-tokens", str(variant.new_tokens))
    slow = (*common, "--measured", str(part), "--measured-tokens", str(variant.measured_tokens))
    slow += ("--batch", str(variant.batch), "--cpu-bytes", str(variant.cpu_bytes))
    ram = str(variant.limit_bytes - _HEADROOM)
    found = [
        Peer("outsize", "dataset_outsize.py", model, 0, (*common, "--ram-bytes", ram)),
        Peer("accelerate", "dataset_accelerate.py", model, 0, slow),
    ]
    if task == "score":
        found.append(Peer("lm_eval hf", "dataset_accelerate.py", model, 0, (*slow, "--harness")))
    return found


def figures(run: Run, variant: Variant, task: str) -> dict[str, Any]:
    """A run, scaled up to the whole dataset."""
    if run.failure:
        return {"engine": run.engine, "failure": run.failure}
    printed = run.printed
    prompts = variant.scored if task == "score" else variant.generated
    share = printed["computed"] / prompts
    if task == "generate":
        share *= printed["new_tokens"] / variant.new_tokens
    whole = {name: printed["work"][name] / share for name in ("seconds", "disk_bytes")}
    return {**printed, "engine": run.engine, "failure": "", "share": share, "whole": whole}


def checks(task: str, found: dict[str, dict[str, Any]], new_tokens: int) -> list[dict[str, Any]]:
    """What is to be shown, each with what was found."""
    own = found.get("outsize")
    if own is None:
        return []
    if own["failure"]:
        return [{"what": f"{task}: outsize", "want": "done", "have": own["failure"], "met": False}]
    passes = own["work"]["disk_bytes"] / own["streamed_bytes"]
    least, most = (0.95, 1.05) if task == "score" else (new_tokens - 1.0, new_tokens + 2.0)
    rows = [
        {
            "what": f"{task}: times that the streamed weights were read",
            "want": f"{least:g} to {most:g}",
            "have": passes,
            "met": least <= passes <= most,
        }
    ]
    for name in ("accelerate", "lm_eval hf"):
        peer = found.get(name)
        if peer is None or peer["failure"]:
            continue
        for what in ("disk_bytes", "seconds"):
            ratio = peer["whole"][what] / own["whole"][what]
            rows.append({"what": f"{task}: {name}, {what} over ours", "want": "> 1", "have": ratio, "met": ratio > 1})
    off = own["predicted_seconds"] / own["work"]["seconds"]
    rows.append({"what": f"{task}: predicted over measured", "want": "0.5 to 2", "have": off, "met": 0.5 <= off <= 2})
    same = own["predicted_sweeps"] == own["sweeps"]
    rows.append(
        {"what": f"{task}: sweeps as predicted", "want": own["predicted_sweeps"], "have": own["sweeps"], "met": same}
    )
    return rows


def table(task: str, found: dict[str, dict[str, Any]]) -> str:
    """A line per engine."""
    heads = f"{'s, whole':>10} {'predicted':>10} {'GB, whole':>10} {'sweeps':>7} {'predicted':>10} {'peak GiB':>9}"
    lines = [f"{task:12} {'computed':>9} {heads}"]
    for name, figure in found.items():
        if figure["failure"]:
            lines.append(f"{name:10} {figure['failure']}")
            continue
        said = figure.get("predicted_seconds")
        lines.append(
            f"{name:12} {figure['share']:>9.0%} {figure['whole']['seconds']:>10.1f}"
            f" {'' if said is None else f'{said:.1f}':>10} {figure['whole']['disk_bytes'] / 1e9:>10.2f}"
            f" {figure.get('sweeps', ''):>7} {figure.get('predicted_sweeps', ''):>10}"
            f" {figure['peak_rss_bytes'] / GIB:>9.2f}"
        )
    return "\n".join(lines)


def overhead(folder: Path) -> dict[str, Any]:
    """The scheduler's cost, as a process of its own found it."""
    model = checkpoints.ensure(folder, "opt-125m")
    command = [sys.executable, str(_PEERS / "dataset_overhead.py"), str(model)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Command line; 1 if an engine failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tasks", default="score,generate,overhead")
    parser.add_argument("--only", default="outsize,accelerate,lm_eval hf", help="engines, comma-separated")
    parser.add_argument("--shared", type=float, default=0.0, help="share of each prompt that all have in common")
    parser.add_argument("--folder", type=Path, default=checkpoints.default_folder())
    parser.add_argument("--out", nargs="?", const="", help="write the JSON, to bench/results/ by default")
    options = parser.parse_args()
    variant = SMALL if options.small else FULL
    model = checkpoints.ensure(options.folder, variant.shape)
    result: dict[str, Any] = {
        "schema": 1,
        "benchmark": f"dataset-{variant.name}",
        "machine": report.machine(),
        "variant": asdict(variant),
        "shared": options.shared,
        "tasks": {},
        "checks": [],
    }
    failed = False
    for task in [t for t in options.tasks.split(",") if t != "overhead"]:
        found = {}
        for peer in lineup(variant, model, task, options.shared):
            if peer.name in options.only.split(","):
                print(f"{task}: {peer.name} …", file=sys.stderr, flush=True)
                found[peer.name] = figures(peer.run(variant.limit_bytes, variant.timeout_s), variant, task)
                failed |= bool(found[peer.name]["failure"])
        print(table(task, found), flush=True)
        result["tasks"][task] = found
        result["checks"] += checks(task, found, variant.new_tokens)
    if "overhead" in options.tasks:
        cost = overhead(options.folder)
        result["overhead"] = cost
        ratio = cost["over_alone"]
        result["checks"].append(
            {"what": "64 micro-batches over one after another", "want": "<= 1.05", "have": ratio, "met": ratio <= 1.05}
        )
    for row in result["checks"]:
        have = f"{row['have']:.3f}" if isinstance(row["have"], float) else row["have"]
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['what']}: {have} (wanted {row['want']})")
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
