"""What users write about a machine and a request, as the planner takes it. Light: ``outsize plan`` needs no more."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from outsize.errors import UsageError
from outsize.machine.compiled import are_kernels_compiled
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.plan import WEIGHTS, Request, Weights
from outsize.planner.planner import make_request
from outsize.sizes import parse_size

Size = int | str  # bytes, or as a person writes them: "6GiB"


def request_for(  # noqa: PLR0913
    spec: ModelSpec,
    machine: Machine,
    *,
    context: int | None = None,
    batch: int = 1,
    prompt: int | None = None,
    ram: Size | None = None,
    gpu_memory: Size | Sequence[Size] | None = None,
    weight_limits: Mapping[str, Size] | None = None,
) -> Request:
    """A Request from what users write. One size of ``gpu_memory`` counts for every GPU.

    Raises UsageError for a number of sizes that is not that of the GPUs, and for tiers that the machine has not.
    """
    several = () if gpu_memory is None else (gpu_memory,) if isinstance(gpu_memory, int | str) else tuple(gpu_memory)
    budgets = tuple(_bytes(size) for size in several)
    if len(budgets) == 1:
        budgets *= len(machine.gpus)
    elif budgets and len(budgets) != len(machine.gpus):
        raise UsageError(
            "gpu_memory does not match the GPUs", need=f"one size or {len(machine.gpus)}", have=str(len(budgets))
        )
    tiers = [device.name for device in machine.devices if device.kind != "disk"]
    for tier in weight_limits or {}:
        if tier not in tiers:
            raise UsageError(f"there is no tier {tier!r} to limit weights in", need="one of " + ", ".join(tiers))
    return make_request(
        spec,
        warm="transformers" in sys.modules,
        bf12=are_kernels_compiled(os.environ),
        context=context,
        batch=batch,
        prompt=prompt,
        ram_budget=None if ram is None else _bytes(ram),
        gpu_budgets=budgets,
        weight_limits=tuple((tier, _bytes(size)) for tier, size in (weight_limits or {}).items()),
    )


def drop_gpus(machine: Machine) -> Machine:
    """The machine without its GPUs."""
    return replace(machine, devices=tuple(d for d in machine.devices if d.kind != "gpu"))


def parse_weights(text: str) -> Weights:
    """One of native, int8 and int4. Raises UsageError."""
    for known in WEIGHTS:
        if text == known:
            return known
    raise UsageError(f"weights {text!r}", need="one of " + ", ".join(WEIGHTS))


def _bytes(size: Size) -> int:
    return size if isinstance(size, int) else parse_size(size)
