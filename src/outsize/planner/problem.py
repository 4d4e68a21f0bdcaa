"""One model on one machine in one format: what every candidate placement needs, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner import cost, footprint
from outsize.planner.placement import Tier, Unit
from outsize.planner.plan import KeptTensor, Request, Weights

SMALL_BYTES = 1024**2  # modules outside the blocks below this follow their neighbours
SMALL_EMBEDDING_BYTES = 64 * 1024**2  # look-ups below this are kept: a random read a token costs more than they do


@dataclass(frozen=True, slots=True)
class Load:
    """What one module weighs in one format, whatever is asked of it."""

    rest_bytes: int  # in the files, as they are read
    file_bytes: int  # in the files, with what nobody reads again
    resident_bytes: int
    slot_bytes: int
    parts: int  # that it is streamed in
    slack_bytes: int
    converted_bytes: int
    tensor_bytes: tuple[tuple[int, int, int], ...]  # of each tensor: in the files, in RAM, in RAM in the compact form
    compact_bytes: int | None  # in RAM in the compact form; None where no tensor has one
    work: cost.Work
    compact_work: cost.Work


def module_loads(spec: ModelSpec, weights: Weights) -> tuple[Load, ...]:
    """The load of every module. Modules that differ in their names alone, as blocks do, are weighed once."""
    known: dict[object, Load] = {}
    loads = []
    for module in spec.modules:
        alike = (
            module.role,
            bool(module.tied),
            tuple((t.shape, t.stored, t.runtime, t.matmul, t.part, t.packing, t.span) for t in module.tensors),
        )
        if alike not in known:
            known[alike] = Load(
                rest_bytes=footprint.rest_bytes(module, weights),
                file_bytes=footprint.file_bytes(module, weights),
                resident_bytes=footprint.resident_bytes(module, weights),
                slot_bytes=footprint.slot_bytes(module, weights),
                parts=len(module.parts),
                slack_bytes=footprint.slack_bytes(module, weights),
                converted_bytes=footprint.converted_bytes(module, weights),
                tensor_bytes=tuple(footprint.forms(module, t, weights) for t in module.tensors),
                compact_bytes=footprint.compact_bytes(module, weights),
                work=cost.module_work(spec, module, weights),
                compact_work=cost.module_work(spec, module, weights, compact=True),
            )
        loads.append(known[alike])
    return tuple(loads)


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
    rest_bytes: tuple[int, ...]  # per module, in the files, as they are read
    file_bytes: tuple[int, ...]  # per module, in the files, with what nobody reads again
    parts: tuple[int, ...]  # per module, that it is streamed in
    tensors: tuple[tuple[KeptTensor, ...], ...]  # per module: what keeping each would take
    decode_s: dict[str, tuple[float, ...]]  # per home, per module: one token of each sequence
    prefill_s: dict[str, tuple[float, ...]]  # per computing device, per module: the prompts
    convert_s: tuple[float, ...]  # per module, if streamed
    encode_s: tuple[float, ...]  # per module, if it comes to rest in RAM: into the compact form
    workspace: int
    overhead: int  # of the process, the slack of direct reads included

    def is_streamed(self, homes: Sequence[str], index: int) -> bool:
        """Whether the module is read again in every sweep it takes part in."""
        return homes[index] == "disk" and not self.units[index].rows


def make_problem(
    spec: ModelSpec,
    machine: Machine,
    request: Request,
    weights: Weights,
    loads: tuple[Load, ...] | None = None,
    *,
    compact: bool = False,
) -> Problem:
    """Compute once what every candidate needs; ``loads`` are ``module_loads``' of that format, if they are known.

    ``compact``: what rests in RAM is held there in the lossless 12-bit form, where it has one.
    """
    loads = module_loads(spec, weights) if loads is None else loads
    workspace = footprint.workspace_bytes(spec, request) + footprint.unpacked_bytes(spec, weights)
    overhead = footprint.ram_overhead_bytes(spec, machine, workspace) + sum(load.slack_bytes for load in loads)
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
    units = tuple(_unit(spec, i, load, request, every=i not in idle, compact=compact) for i, load in enumerate(loads))
    decode: dict[str, tuple[float, ...]] = {}
    prefill: dict[str, tuple[float, ...]] = {}
    works = [load.work for load in loads]
    prompts = request.batch * footprint.prompt_tokens(request)
    for device in (*machine.gpus, machine.ram):
        decode[device.name] = tuple(
            cost.compute_s(w, device, request.batch, u.kv_bytes) for w, u in zip(works, units, strict=True)
        )
        prefill[device.name] = tuple(
            cost.compute_s(w, device, prompts if _sees_prompt(spec, u) else request.batch, 0)
            for w, u in zip(works, units, strict=True)
        )
    decode["disk"] = decode["ram"]
    if compact:
        decode["ram"] = tuple(
            cost.compute_s(load.compact_work, machine.ram, request.batch, u.kv_bytes)
            for load, u in zip(loads, units, strict=True)
        )
    return Problem(
        spec=spec,
        machine=machine,
        request=request,
        weights=weights,
        units=units,
        ram=Tier("ram", room, footprint.weight_limit_bytes(request, "ram")),
        gpus=gpus,
        rest_bytes=tuple(load.rest_bytes for load in loads),
        file_bytes=tuple(load.file_bytes for load in loads),
        parts=tuple(load.parts for load in loads),
        tensors=tuple(
            tuple(
                KeptTensor(tensor.name, in_files, compacted if compact else in_ram)
                for tensor, (in_files, in_ram, compacted) in zip(module.tensors, load.tensor_bytes, strict=True)
            )
            for module, load in zip(spec.modules, loads, strict=True)
        ),
        decode_s=decode,
        prefill_s=prefill,
        convert_s=tuple(cost.convert_s(load.converted_bytes, machine.ram) for load in loads),
        encode_s=tuple(cost.encode_s(load.rest_bytes) if compact and load.compact_bytes else 0.0 for load in loads),
        workspace=workspace,
        overhead=overhead,
    )


def _unit(spec: ModelSpec, index: int, load: Load, request: Request, *, every: bool, compact: bool) -> Unit:
    module, size = spec.modules[index], load.resident_bytes
    lookup = cost.is_lookup(spec, module)
    unit = Unit(
        index=index,
        kind="block",
        resident_bytes=size,
        slot_bytes=load.slot_bytes,
        kv_bytes=footprint.kv_bytes(module.cache, request),
        every_token=every,
        rows=lookup and not module.tied,
        made_anew=load.converted_bytes > 0 or any(spec.origins[t.name].copies for t in module.tensors if spec.origins),
        compact_bytes=load.compact_bytes if compact else None,
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
