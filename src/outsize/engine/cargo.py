"""From a plan to what the stream carries. Needs no torch, so that reading begins before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outsize.errors import DamagedModel
from outsize.models.spec import ModelSpec, ModuleSpec, StoredTensor, TensorSpec
from outsize.planner.footprint import forms, is_compactable
from outsize.planner.plan import Item, Plan
from outsize.store.layout import lay_out
from outsize.store.stream import Cargo, Stay


@dataclass(frozen=True, slots=True)
class Load:
    """Tensors of a module that are read together, and bound together.

    ``compact``: names of those that are held in the lossless 12-bit form.
    """

    tensors: tuple[TensorSpec, ...]
    cargo: Cargo
    compact: frozenset[str] = frozenset()


def loads_of(spec: ModelSpec, plan: Plan, tensors: Sequence[StoredTensor]) -> tuple[tuple[Load, ...], ...]:
    """What is read for each module, in the order of spec and plan.

    Nothing for an embedding looked up on disk, one load for what is kept as it is read, else one for each part, after
    those tensors of a streamed module that stay. Raises DamagedModel where the spec names a tensor that the
    checkpoint lacks.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    return tuple(
        tuple(
            Load(
                several,
                Cargo(module.name, lay_out(_stored(spec, several, by_name)), stay, _rest(plan, module, item, several)),
                frozenset(t.name for t in several if item.compact and is_compactable(module, t, plan.weights)),
            )
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
    kept = {one.name for one in item.kept}
    anew: Stay = "once" if item.compact else "keep"
    divided: list[tuple[tuple[TensorSpec, ...], Stay]] = [((t,), anew) for t in module.tensors if t.name in kept]
    divided += [(tuple(t for t in part if t.name not in kept), stay) for part in module.parts]
    return [(tensors, stay) for tensors, stay in divided if tensors]


def _rest(plan: Plan, module: ModuleSpec, item: Item, tensors: tuple[TensorSpec, ...]) -> int:
    """Bytes that the tensors take in RAM once they are compact; nothing where they are not made so."""
    return sum(forms(module, tensor, plan.weights)[2] for tensor in tensors) if item.compact else 0


def _stored(spec: ModelSpec, tensors: Sequence[TensorSpec], by_name: dict[str, StoredTensor]) -> list[StoredTensor]:
    names = [name for tensor in tensors for name in spec.origins[tensor.name].names]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DamagedModel(f"the checkpoint lacks {missing[0]}")
    return [by_name[name] for name in names]


def _stay(spec: ModelSpec, module: ModuleSpec, item: Item) -> Stay:
    if item.streamed:
        return "stream"
    made_anew = item.compact or any(spec.origins[tensor.name].copies for tensor in module.tensors)
    return "keep" if item.home == "ram" and not made_anew else "once"
