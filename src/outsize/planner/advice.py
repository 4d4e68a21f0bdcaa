"""What would make a model faster on a machine: changes, cheapest first, each planned anew and priced in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from outsize.machine.machine import Machine
from outsize.machine.what_if import changed
from outsize.models.spec import ModelSpec
from outsize.planner.plan import WEIGHTS, Plan, Weights
from outsize.planner.planner import plan_one
from outsize.sizes import GIB, format_rate, format_size

WORTH = 0.95  # of a token's seconds: a change that leaves more is not named
RAM_STEP = 16  # GiB: modules of memory come in such sizes
DRIVES = (3.5e9, 7e9, 14e9)  # sequential reads of NVMe drives on PCIe 3, 4 and 5
GPU_GIB = 24

Change = tuple[str, str, Machine, Weights]  # in words, as options, and what to plan


@dataclass(frozen=True, slots=True)
class Advice:
    """One change, in words and as options of the command line ("" where there are none), and the plan that it gives."""

    change: str
    options: str
    plan: Plan


def advise(spec: ModelSpec, machine: Machine, plan: Plan) -> tuple[Advice, ...]:
    """Changes that make a token at least 5 % faster than ``plan`` does, or that make the model fit; free ones first.

    Other weight formats; memory that other programs hold; more RAM; faster drives, where a drive is read; one more GPU.
    Of one kind, each is at least 5 % faster than the one before it.
    """
    found: list[Advice] = []
    for kind in (_formats, _free, _more_ram, _drives, _one_more_gpu):
        best = plan.predicted.token_s if plan.fits else float("inf")
        for change, options, other, weights in kind(spec, machine, plan):
            new = plan_one(spec, other, plan.request, weights)
            if new.fits and new.predicted.token_s <= WORTH * best:
                best = new.predicted.token_s
                found.append(Advice(change, options, new))
    return tuple(found)


def _formats(spec: ModelSpec, machine: Machine, plan: Plan) -> Iterator[Change]:
    for weights in () if spec.formats else WEIGHTS[WEIGHTS.index(plan.weights) + 1 :]:
        yield f"weights in {weights}", f"--weights {weights}", machine, weights


def _free(spec: ModelSpec, machine: Machine, plan: Plan) -> Iterator[Change]:
    devices = [replace(device, free_bytes=device.capacity_bytes) for device in machine.devices]
    for device in (device for device in machine.devices if device.kind != "disk"):
        held = device.capacity_bytes - device.free_bytes
        freed = tuple(
            new if new.name == device.name else old for new, old in zip(devices, machine.devices, strict=True)
        )
        if held:
            text = f"the {format_size(held)} of {device.name} that others hold"
            yield text, "", replace(machine, devices=freed), plan.weights


def _more_ram(spec: ModelSpec, machine: Machine, plan: Plan) -> Iterator[Change]:
    """A quarter, half and all of what would hold the streamed weights, unless a budget is what bounds the memory."""
    if plan.request.ram_budget is None:
        lacking = sum(group.disk_bytes for group in plan.groups if group.streamed) + plan.shortfall_bytes
        steps = -(-lacking * 11 // (10 * RAM_STEP * GIB))
        for count in sorted({-(-steps // 4), -(-steps // 2), steps} - {0}):
            change = f"ram=+{count * RAM_STEP}GiB"
            yield f"{count * RAM_STEP} GiB more RAM", f"--what-if {change}", changed(machine, change), plan.weights


def _drives(spec: ModelSpec, machine: Machine, plan: Plan) -> Iterator[Change]:
    for rate in DRIVES if plan.predicted.disk_bytes_per_token else ():
        if rate > machine.disk.bytes_per_s:
            change = f"disk@{rate / 1e9:g}GB/s"
            text = f"a drive that reads {format_rate(rate)}"
            yield text, f"--what-if {change}", changed(machine, change), plan.weights


def _one_more_gpu(spec: ModelSpec, machine: Machine, plan: Plan) -> Iterator[Change]:
    like = machine.gpus[-1] if machine.gpus else None
    change = f"gpu=+{GPU_GIB if like is None else round(like.capacity_bytes / GIB)}GiB"
    text = f"a GPU of {GPU_GIB} GiB and {format_rate(changed(machine, change).gpus[-1].bytes_per_s)}"
    if like is not None:
        text = f"one more GPU like {like.name}"
    yield text, f"--what-if {change}", changed(machine, change), plan.weights
