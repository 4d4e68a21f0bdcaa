"""Hold the cost model against accelerate's published figures for two TITAN RTX and 32 GB of RAM.

    python scripts/cost_model_check.py            print the table of docs/cost-model.md
    python scripts/cost_model_check.py --write    put it there

The published figures are upper bounds: a design that moves fewer bytes must be faster on the same machine.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from outsize.machine.describe import parse_machine
from outsize.machine.machine import Machine
from outsize.models.resolve import shipped_spec
from outsize.models.spec import ModelSpec
from outsize.planner.plan import Plan, Request
from outsize.planner.planner import plan_all, plan_one

DOCUMENT = Path(__file__).parent.parent / "docs" / "cost-model.md"
MARKS = ("<!-- scripts/cost_model_check.py -->\n", "<!-- end -->\n")
RAM_BYTES = 32 * 10**9
# The published runs have short prompts and some tens of new tokens.
REQUEST = Request(context=128, prompt=64)


@dataclass(frozen=True)
class Published:
    """A published time per token: the model, the type it ran in, the seconds."""

    model: str
    dtype: str
    token_s: float
    note: str = ""


PUBLISHED = (
    Published("EleutherAI/gpt-j-6B", "float16", 0.05),
    Published("EleutherAI/gpt-neox-20b", "float16", 0.08),
    Published("EleutherAI/gpt-neox-20b", "float32", 10.72, "with disk"),
    Published("facebook/opt-30b", "float16", 2.37, "14.1 GB in RAM"),
    Published("facebook/opt-30b", "float32", 33.9, "with disk"),
)


def machine_of_the_published_runs() -> Machine:
    """The reference machine, with the RAM that the published runs had."""
    machine = parse_machine("2x-titan-rtx")
    ram = replace(machine.ram, capacity_bytes=RAM_BYTES, free_bytes=RAM_BYTES)
    return replace(machine, devices=tuple(ram if d.kind == "ram" else d for d in machine.devices))


def spec_of(row: Published) -> ModelSpec:
    """The shipped spec, stored and computed in the type that the published run had."""
    spec = shipped_spec(row.model)
    assert spec is not None, row.model
    modules = tuple(
        replace(m, tensors=tuple(replace(t, stored=row.dtype, runtime=row.dtype) for t in m.tensors))
        for m in spec.modules
    )
    return replace(spec, modules=modules, dtype=row.dtype)


def plan_of(row: Published) -> Plan:
    """Our plan for it."""
    return plan_one(spec_of(row), machine_of_the_published_runs(), REQUEST)


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | in | published, s/token | predicted, s/token | times faster | limited by | disk per token, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        plan = plan_of(row)
        assert plan.fits, row
        seconds, disk = plan.predicted.token_s, plan.predicted.disk_bytes_per_token / 1e9
        published = f"{row.token_s:g}" + (f" ({row.note})" if row.note else "")
        figures = f"{seconds:.3g} | {row.token_s / seconds:.1f} | {plan.predicted.bottleneck} | {disk:.1f}"
        lines.append(f"| {row.model} | {row.dtype} | {published} | {figures} |")
    return "\n".join(lines) + "\n"


def bloom() -> str:
    """BLOOM on the reference machine with all of its RAM: no published figure is exact enough to stand beside."""
    lines = ["| bigscience/bloom in | predicted, s/token | limited by | disk per token, GB |", "|---|---|---|---|"]
    spec = shipped_spec("bigscience/bloom")
    assert spec is not None
    for plan in plan_all(spec, parse_machine("2x-titan-rtx"), REQUEST):
        disk = plan.predicted.disk_bytes_per_token / 1e9
        lines.append(f"| {plan.weights} | {plan.predicted.token_s:.3g} | {plan.predicted.bottleneck} | {disk:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    made = table() + "\n" + bloom()
    print(made, end="")
    if "--write" in sys.argv[1:]:
        before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        DOCUMENT.write_text(before + MARKS[0] + made + MARKS[1] + after)


if __name__ == "__main__":
    main()
