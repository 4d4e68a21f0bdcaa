"""One model on one machine in one format: what every candidate placement needs, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from outsize.machine.machine import Device, Machine
from outsize.models.spec import ModelSpec, ModuleSpec
from outsize.planner import cost, footprint
from outsize.planner.placement import Kind, TensorBytes, Tier, Unit
from outsize.planner.plan import Request, Weights
from outsize.planner.routing import touched

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
    workspace: int
    overhead: int  # of the process, the slack of direct reads included, staging not
    expert_slot_bytes: int = 0  # of the cache of experts: takes the largest of them
    least_expert_slots: int = 0

    @property
    def file_bytes(self) -> int:
        """Bytes of all files, with what nobody reads again."""
        return sum(unit.file_bytes for unit in self.units)


def make_problem(
    spec: ModelSpec, machine: Machine, request: Request, weights: Weights, *, bf12: bool = False
) -> Problem:
    """Compute once what every candidate needs. Modules that differ only in their names, as blocks do, are weighed once.

    ``bf12``: what rests in RAM is held there in 12 bits, without loss, where it has that form.
    """
    workspace = footprint.workspace_bytes(spec, request) + footprint.unpacked_bytes(spec, weights)
    idle = cost.untouched_by_decode(spec)
    known: dict[object, tuple[Unit, int]] = {}
    units, slack = [], 0
    for index, module in enumerate(spec.modules):
        copied = bool(spec.origins) and any(spec.origins[t.name].copies for t in module.tensors)
        tensors = tuple((t.shape, t.stored, t.runtime, t.matmul, t.part, t.packing, t.span) for t in module.tensors)
        layers = tuple(_layers(module))
        alike = (module.role, module.per_token, bool(module.tied), index in idle, module.cache, copied, tensors, layers)
        if alike not in known:
            weigher = _Weigher(spec, machine, request, weights, bf12=bf12)
            unit = weigher.unit(module, every_token=index not in idle, copied=copied)
            known[alike] = unit, footprint.slack_bytes(module, weights)
        units.append(replace(known[alike][0], index=index))
        slack += known[alike][1] if not module.experts else 0  # which is in the slots of their cache
    routed = [module for module in spec.modules if module.experts]
    slot = max((footprint.expert_slot_bytes(module, weights) for module in routed), default=0)
    least = footprint.least_expert_slots(sum(module.experts for module in routed), slot) if routed else 0
    units = [replace(u, slot_bytes=slot, ram_bytes=u.experts * slot) if u.experts else u for u in units]
    copied_bytes = max((footprint.expert_copy_bytes(module, weights) for module in routed), default=0)
    overhead = footprint.ram_overhead_bytes(spec, workspace, triton=request.triton) + slack + copied_bytes
    room = footprint.ram_capacity_bytes(machine, request) - overhead - workspace - least * slot
    gpus = tuple(
        Tier(
            gpu.name,
            footprint.gpu_capacity_bytes(machine, index, request) - footprint.gpu_overhead_bytes(gpu) - workspace,
            footprint.weight_limit_bytes(request, gpu.name),
            footprint.staging_bytes(gpu),
        )
        for index, gpu in enumerate(machine.gpus)
    )
    ram = Tier("ram", room, footprint.weight_limit_bytes(request, "ram"))
    return Problem(spec, machine, request, weights, tuple(units), ram, gpus, workspace, overhead, slot, least)


@dataclass(frozen=True, slots=True)
class _Weigher:
    """Bytes and seconds of single modules."""

    spec: ModelSpec
    machine: Machine
    request: Request
    weights: Weights
    bf12: bool

    def unit(self, module: ModuleSpec, *, every_token: bool, copied: bool) -> Unit:
        spec, weights = self.spec, self.weights
        resident = footprint.resident_bytes(module, weights)
        encoded = footprint.bf12_bytes_of(module, weights) if self.bf12 else None
        kind = self._kind(module, resident)
        return Unit(
            index=0,
            kind=kind,
            rest_bytes=footprint.rest_bytes(module, weights),
            file_bytes=footprint.file_bytes(module, weights),
            resident_bytes=resident,
            ram_bytes=resident if encoded is None else encoded,
            slot_bytes=0 if module.experts else footprint.slot_bytes(module, weights),
            experts=module.experts,
            token_bytes=self._token_bytes(module),
            kv_bytes=footprint.kv_bytes(module.cache, self.request),
            parts=len(module.parts),
            every_token=every_token,
            rows=cost.is_lookup(spec, module) and not module.tied,
            copied=copied or footprint.converted_bytes(module, weights) > 0,
            encoded=encoded is not None,
            tensors=tuple(
                TensorBytes(
                    *footprint.forms(module, t, weights, bf12=self.bf12),
                    key=cost.rate_key(module, t, weights),
                    matmul=t.matmul,
                    layer=layer,
                )
                for t, layer in zip(module.tensors, _layers(module), strict=True)
            ),
            decode_s=self._decode_s(module, encoded is not None),
            prefill_s=self._prefill_s(module, kind, every_token=every_token),
        )

    def _token_bytes(self, module: ModuleSpec) -> float:
        if not module.experts:
            return 0.0
        share = touched(module.experts, module.per_token, self.request.batch)
        return share * footprint.rest_bytes(module, self.weights)

    def _kind(self, module: ModuleSpec, resident: int) -> Kind:
        if module.experts:
            return "experts"
        if cost.is_head(self.spec, module):
            return "head"
        if cost.is_lookup(self.spec, module):
            # A small one is kept like a norm, unless nothing may rest in RAM: then its rows are read from disk.
            keep = resident < SMALL_EMBEDDING_BYTES and footprint.weight_limit_bytes(self.request, "ram") >= resident
            return "small" if keep and not module.tied else "lookup"
        return "small" if module.role == "other" and resident < SMALL_BYTES else "block"

    def _decode_s(self, module: ModuleSpec, encoded: bool) -> dict[str, float]:
        """Seconds of one token of each sequence, by the tier in which the module rests."""
        request, ram = self.request, self.machine.ram
        kv = footprint.kv_bytes(module.cache, request)
        work = cost.module_work(self.spec, module, self.weights)

        def on(device: Device, work: cost.Work) -> float:
            return cost.compute_s(work, device, request.batch, kv, self.machine.overheads)

        seconds = {gpu.name: on(gpu, work) for gpu in self.machine.gpus}
        seconds["ram"] = on(ram, cost.module_work(self.spec, module, self.weights, bf12=True) if encoded else work)
        seconds["disk"] = on(ram, work)
        if not module.experts:  # which are not streamed
            seconds["disk"] += cost.convert_s(footprint.converted_bytes(module, self.weights), ram)
            seconds["disk"] += self.machine.overheads.handover_s * len(module.parts)
        return seconds

    def _prefill_s(self, module: ModuleSpec, kind: Kind, *, every_token: bool) -> dict[str, float]:
        """Seconds of the prompts, by the computing device."""
        tokens = self.request.batch
        if kind != "head" and (not self.spec.encoder_decoder or not every_token):
            tokens *= footprint.prompt_tokens(self.request)
        work = cost.module_work(self.spec, module, self.weights)
        devices = (*self.machine.gpus, self.machine.ram)
        return {d.name: cost.compute_s(work, d, tokens, 0, self.machine.overheads) for d in devices}


def _layers(module: ModuleSpec) -> list[int]:
    """For each tensor, the place of the first one of the same inner module."""
    names = [tensor.name.rpartition(".")[0] for tensor in module.tensors]
    return [names.index(name) for name in names]


def by_device(problem: Problem) -> Mapping[str, Device]:
    """The devices of the machine by name."""
    return {device.name: device for device in problem.machine.devices}
