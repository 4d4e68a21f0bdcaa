"""The weight groups of a placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outsize.models.spec import ModuleSpec
from outsize.planner import footprint
from outsize.planner.explain import fill_reason, reason
from outsize.planner.fill import Filling
from outsize.planner.placement import Unit, computing
from outsize.planner.problem import Problem
from outsize.planner.weight_group import PACKED, Format, Residency, WeightGroup


def groups_of(problem: Problem, homes: Sequence[str], filling: Filling) -> tuple[WeightGroup, ...]:
    """The weight groups of a placement, in the order of the sweep.

    A module is one group where it stays in RAM as it is in the files, and one group for each part that it computes in
    otherwise. Tensors that rest elsewhere than their module are groups of their own, before the others.
    """
    known: dict[object, WeightGroup] = {}  # of modules that are alike

    def group(index: int, places: tuple[int, ...], tier: str, *, apart: bool = False) -> WeightGroup:
        module, unit = problem.spec.modules[index], problem.units[index]
        alike = (id(unit.tensors), module.role, module.tied, places, tier, apart)
        tensors = tuple(module.tensors[place] for place in places)
        if alike not in known:
            why = fill_reason(tier) if apart else reason(problem.machine, module, unit, tier)
            known[alike] = _group(problem, unit, replace(module, tensors=tensors), tier, why)
        return replace(known[alike], module=module.name, tensors=tuple(tensor.name for tensor in tensors))

    groups: list[WeightGroup] = []
    for unit, home in zip(problem.units, homes, strict=True):
        elsewhere = filling.get(unit.index, {})
        if not elsewhere and not unit.passes_ring(home):
            groups.append(group(unit.index, tuple(range(len(unit.tensors))), home))
            continue
        pieces: dict[tuple[str, int], list[int]] = {}
        for place, device in elsewhere.items():
            # What computes apart from its module must be all that an inner module has.
            pieces.setdefault((device, place if device == "ram" else unit.tensors[place].layer), []).append(place)
        groups += [group(unit.index, tuple(places), tier, apart=True) for (tier, _), places in pieces.items()]
        parts: dict[int, list[int]] = {}
        for place, tensor in enumerate(problem.spec.modules[unit.index].tensors):
            if place not in elsewhere:
                parts.setdefault(tensor.part, []).append(place)
        groups += [group(unit.index, tuple(parts[part]), home) for part in sorted(parts)]
    return tuple(groups)


def _group(problem: Problem, unit: Unit, module: ModuleSpec, tier: str, why: str) -> WeightGroup:
    weights = problem.weights
    part = replace(module, tensors=tuple(replace(tensor, part=0) for tensor in module.tensors))
    packed = {p.format for t in part.tensors if (p := footprint.packing_of(module, t, weights)) is not None}
    form: Format = next((name for name in PACKED if name in packed), "native")
    encoded = footprint.bf12_bytes_of(part, weights) if tier == "ram" and unit.encoded else None
    at_rest = footprint.file_bytes(part, weights) if tier == "disk" else footprint.resident_bytes(part, weights)
    looked_up = unit.rows and tier == "disk"
    in_place = tier == "ram" and not unit.passes_ring(tier)
    return WeightGroup(
        module=module.name,
        tensors=(),
        disk_bytes=footprint.rest_bytes(part, weights),
        rest_bytes=at_rest if encoded is None else encoded,
        buffer_bytes=0 if in_place or looked_up or unit.experts else footprint.slot_bytes(part, weights),
        format=form if encoded is None else "bf12",
        tier=tier,
        device=computing(tier),
        residency="cached" if looked_up or (tier == "disk" and unit.experts) else _residency(tier),
        use=0.0 if looked_up else module.per_token / module.experts if module.experts else 1.0,
        in_place=in_place,
        experts=module.experts,
        reason=why,
    )


def _residency(tier: str) -> Residency:
    return "streamed" if tier == "disk" else "resident"
