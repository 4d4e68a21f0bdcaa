"""From a plan to what the stream carries. Needs no torch, so that reading begins before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from outsize.errors import DamagedModel
from outsize.facts.model import ModelSpec, ModuleSpec, StoredTensor, TensorSpec
from outsize.planning.plan import Item, Plan
from outsize.store.layout import lay_out
from outsize.store.stream import Cargo, Stay


def cargo_of(spec: ModelSpec, plan: Plan, tensors: Sequence[StoredTensor]) -> tuple[tuple[Cargo, ...], ...]:
    """What is read for each module, in the order of spec and plan.

    Nothing for an embedding looked up on disk, one cargo for what is kept as it is read, else one for each part.
    Raises DamagedModel where the spec names a tensor that the checkpoint lacks.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    return tuple(
        _module_cargo(spec, module, item, by_name) for module, item in zip(spec.modules, plan.items, strict=True)
    )


def first_of_last_stack(spec: ModelSpec, cargo: Sequence[tuple[Cargo, ...]]) -> int:
    """Where the stream goes on after its last cargo: at its first, or at the decoder's first block, swept per token."""
    passing = [module for module, several in zip(spec.modules, cargo, strict=True) for _ in several]
    blocks = [i for i, module in enumerate(passing) if module.role == "block"]
    if not blocks or passing[blocks[0]].stack == passing[blocks[-1]].stack:
        return 0
    return next(i for i in blocks if passing[i].stack == passing[blocks[-1]].stack)


def _module_cargo(
    spec: ModelSpec, module: ModuleSpec, item: Item, by_name: dict[str, StoredTensor]
) -> tuple[Cargo, ...]:
    if item.rows:
        return ()
    stay = _stay(spec, module, item)
    parts = (module.tensors,) if stay == "keep" else module.parts
    return tuple(Cargo(module.name, lay_out(_stored(spec, tensors, by_name)), stay) for tensors in parts)


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
