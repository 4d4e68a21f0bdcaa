"""From a plan to what the stream carries. Needs no torch, so that reading begins before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outsize.errors import DamagedModel
from outsize.facts.model import ModelSpec, ModuleSpec, StoredTensor, TensorSpec
from outsize.planning.plan import Item, Plan
from outsize.store.layout import lay_out
from outsize.store.stream import Cargo, Stay


@dataclass(frozen=True, slots=True)
class Load:
    """Tensors of a module that are read together, and bound together."""

    tensors: tuple[TensorSpec, ...]
    cargo: Cargo


def loads_of(spec: ModelSpec, plan: Plan, tensors: Sequence[StoredTensor]) -> tuple[tuple[Load, ...], ...]:
    """What is read for each module, in the order of spec and plan.

    Nothing for an embedding looked up on disk, one load for what is kept as it is read, else one for each part, after
    one for those tensors of a streamed module that stay. Raises DamagedModel where the spec names a tensor that the
    checkpoint lacks.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    return tuple(
        tuple(
            Load(several, Cargo(module.name, lay_out(_stored(spec, several, by_name)), stay))
            for several, stay in _divided(spec, module, item)
        )
        for module, item in zip(spec.modules, plan.items, strict=True)
    )


def first_of_last_stack(spec: ModelSpec, loads: Sequence[tuple[Load, ...]]) -> int:
    """Where the stream goes on after its last cargo: at its first, or at the decoder's first block, swept per token."""
    passing = [module for module, several in zip(spec.modules, loads, strict=True) for _ in several]
    blocks = [i for i, module in enumerate(passing) if module.role == "block"]
    if not blocks or passing[blocks[0]].stack == passing[blocks[-1]].stack:
        return 0
    return next(i for i in blocks if passing[i].stack == passing[blocks[-1]].stack)


def _divided(spec: ModelSpec, module: ModuleSpec, item: Item) -> list[tuple[tuple[TensorSpec, ...], Stay]]:
    """A module's tensors as they are read together, each with how long it stays."""
    if item.rows:
        return []
    stay = _stay(spec, module, item)
    if stay == "keep":
        return [(module.tensors, stay)]
    names = {name for name, _ in item.kept}
    kept = tuple(tensor for tensor in module.tensors if tensor.name in names)
    passing = (tuple(tensor for tensor in part if tensor.name not in names) for part in module.parts)
    divided: list[tuple[tuple[TensorSpec, ...], Stay]] = [(kept, "keep"), *((part, stay) for part in passing)]
    return [(tensors, stay) for tensors, stay in divided if tensors]


def _stored(spec: ModelSpec, tensors: Sequence[TensorSpec], by_name: dict[str, StoredTensor]) -> list[StoredTensor]:
    names = [name for tensor in tensors for name in spec.origins[tensor.name].names]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DamagedModel(f"the checkpoint lacks {missing[0]}")
    return [by_name[name] for name in names]


def _stay(spec: ModelSpec, module: ModuleSpec, item: Item) -> Stay:
    if item.streamed:
        return "stream"
    made_anew = any(spec.origins[tensor.name].copies for tensor in module.tensors)
    return "keep" if item.home == "ram" and not made_anew else "once"
