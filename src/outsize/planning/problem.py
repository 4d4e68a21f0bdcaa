"""One model on one machine in one format: what every candidate placement needs, computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outsize.facts.machine import Machine
from outsize.facts.model import ModelSpec, ModuleSpec
from outsize.planning import cost, footprint
from outsize.planning.placement import Tier, Unit
from outsize.planning.plan import Request, Weights

SMALL_BYTES = 1024**2  # modules outside the blocks below this follow their neighbours
SMALL_EMBEDDING_BYTES = 64 * 1024**2  # look-ups below this are kept: a random read a token costs more than they do


@dataclass(frozen=True, slots=True)
class Problem:
    """One model on one machine in one format: bytes and seconds per module and device."""

    spec: ModelSpec
    machine: Machine
    request: Request
    weights: Weights
    units: tuple[Unit, ...]
    ram: Tier
    gpus: tuple[Tier, ...]
    rest_bytes: tuple[int, ...]  # per module, in the files
    decode_s: dict[str, tuple[float, ...]]  # per computing device, per module: one token of each sequence
    prefill_s: dict[str, tuple[float, ...]]  # per computing device, per module: the prompts
    convert_s: tuple[float, ...]  # per module, if streamed
    workspace: int
    overhead: int  # of the process, the slack of direct reads included


def make_problem(spec: ModelSpec, machine: Machine, request: Request, weights: Weights) -> Problem:
    """Compute once what every candidate needs."""
    modules = spec.modules
    workspace = footprint.workspace_bytes(spec, request)
    overhead = footprint.ram_overhead_bytes(machine) + sum(footprint.slack_bytes(m, weights) for m in modules)
    room = footprint.ram_capacity_bytes(machine, request) - overhead - workspace
    gpus = tuple(
        Tier(
            gpu.name,
            footprint.gpu_capacity_bytes(machine, index, request) - footprint.gpu_overhead_bytes(gpu) - workspace,
            footprint.weight_limit_bytes(request, gpu.name),
        )
        for index, gpu in enumerate(machine.gpus)
    )
    idle = _untouched_by_decode(spec)
    units = tuple(_unit(spec, module, i, request, weights, every=i not in idle) for i, module in enumerate(modules))
    decode: dict[str, tuple[float, ...]] = {}
    prefill: dict[str, tuple[float, ...]] = {}
    works = [cost.module_work(spec, module, weights) for module in modules]
    prompts = request.batch * footprint.prompt_tokens(request)
    for device in (*machine.gpus, machine.ram):
        decode[device.name] = tuple(
            cost.compute_s(w, device, request.batch, u.kv_bytes) for w, u in zip(works, units, strict=True)
        )
        prefill[device.name] = tuple(
            cost.compute_s(w, device, prompts if _sees_prompt(spec, u) else request.batch, 0)
            for w, u in zip(works, units, strict=True)
        )
    return Problem(
        spec=spec,
        machine=machine,
        request=request,
        weights=weights,
        units=units,
        ram=Tier("ram", room, footprint.weight_limit_bytes(request, "ram")),
        gpus=gpus,
        rest_bytes=tuple(footprint.rest_bytes(module, weights) for module in modules),
        decode_s=decode,
        prefill_s=prefill,
        convert_s=tuple(cost.convert_s(footprint.converted_bytes(m, weights), machine.ram) for m in modules),
        workspace=workspace,
        overhead=overhead,
    )


def _unit(spec: ModelSpec, module: ModuleSpec, index: int, request: Request, weights: Weights, *, every: bool) -> Unit:
    size = footprint.resident_bytes(module, weights)
    lookup = cost.is_lookup(spec, module)
    unit = Unit(
        index=index,
        kind="block",
        resident_bytes=size,
        slot_bytes=footprint.slot_bytes(module, weights),
        kv_bytes=footprint.kv_bytes(module.cache, request),
        every_token=every,
        rows=lookup and not module.tied,
    )
    if cost.is_head(spec, module):
        return replace(unit, kind="head")
    if lookup:
        # A small one is kept like a norm, unless nothing may rest in RAM: then its rows are read from disk.
        keep = size < SMALL_EMBEDDING_BYTES and footprint.weight_limit_bytes(request, "ram") >= size
        return replace(unit, kind="small" if keep and unit.rows else "lookup")
    return replace(unit, kind="small") if module.role == "other" and size < SMALL_BYTES else unit


def _untouched_by_decode(spec: ModelSpec) -> frozenset[int]:
    """Indexes of an encoder's modules: its blocks, and what stands between its first block and the decoder's first."""
    blocks = [i for i, module in enumerate(spec.modules) if module.role == "block"]
    if not spec.encoder_decoder or not blocks:
        return frozenset()
    first = next(i for i in blocks if spec.modules[i].stack == spec.modules[blocks[-1]].stack)
    return frozenset(i for i in range(blocks[0], first) if spec.modules[i].role in ("block", "other"))


def _sees_prompt(spec: ModelSpec, unit: Unit) -> bool:
    """Whether the whole prompt passes: blocks see it, an encoder's where there is one; the head sees one token."""
    return unit.kind != "head" and (not spec.encoder_decoder or not unit.every_token)
