"""Divides the modules of a placement into weight groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outsize.models.spec import ModelSpec, ModuleSpec, TensorSpec
from outsize.planner import footprint
from outsize.planner.plan import Item, Weights
from outsize.planner.weight_group import Format, WeightGroup


def groups_of(spec: ModelSpec, weights: Weights, items: Sequence[Item]) -> tuple[WeightGroup, ...]:
    """The weight groups of a placement, in the order of the sweep.

    A module that stays in RAM as it is in the files is one group; a looked-up embedding on disk is one; any other is
    divided into single tensors that stay and the parts that compute one after the other.
    """
    return tuple(
        group
        for module, item in zip(spec.modules, items, strict=True)
        for group in _module_groups(spec, module, item, weights)
    )


def _module_groups(spec: ModelSpec, module: ModuleSpec, item: Item, weights: Weights) -> list[WeightGroup]:
    whole = _group(module, module.tensors, item, weights)
    if item.rows:
        return [replace(whole, use=0.0, residency="cached", buffer_bytes=0)]
    copies = bool(spec.origins) and any(spec.origins[t.name].copies for t in module.tensors)
    if not item.streamed and item.home == "ram" and not item.compact and not copies:
        return [replace(whole, in_place=True, buffer_bytes=0)]
    kept = {one.name: one for one in item.kept}
    groups = []
    for tensor in module.tensors:
        if tensor.name in kept:
            group = replace(_group(module, (tensor,), item, weights), tier="ram", residency="resident")
            group = replace(group, rest_bytes=kept[tensor.name].ram_bytes, in_place=not item.compact)
            if item.compact and footprint.is_compactable(module, tensor, weights):
                group = replace(group, format="bf12")
            groups.append(replace(group, buffer_bytes=0 if group.in_place else group.buffer_bytes))
    for part in module.parts:
        rest = tuple(tensor for tensor in part if tensor.name not in kept)
        if rest:
            groups.append(_group(module, rest, item, weights))
    return groups


def _group(module: ModuleSpec, tensors: tuple[TensorSpec, ...], item: Item, weights: Weights) -> WeightGroup:
    part = replace(module, tensors=tensors)
    packed = {p.format for t in tensors if (p := footprint.packing_of(module, t, weights)) is not None}
    native: Format = "int4" if "int4" in packed else "int8" if packed else "native"
    compact = item.compact and not item.streamed and any(footprint.is_compactable(module, t, weights) for t in tensors)
    held = footprint.compact_bytes(part, weights) if compact else None
    at_home = footprint.file_bytes(part, weights) if item.home == "disk" else footprint.resident_bytes(part, weights)
    return WeightGroup(
        module=module.name,
        tensors=tuple(t.name for t in tensors),
        disk_bytes=footprint.rest_bytes(part, weights),
        rest_bytes=at_home if held is None else held,
        buffer_bytes=footprint.slot_bytes(replace(part, tensors=tuple(replace(t, part=0) for t in tensors)), weights),
        format="bf12" if compact else native,
        tier=item.home,
        device=item.compute,
        residency="streamed" if item.streamed else "resident",
        reason=item.reason,
    )
