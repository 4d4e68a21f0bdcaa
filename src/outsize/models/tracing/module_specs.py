"""What a skeleton's units are to planning: their tensors as they are stored and used, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from outsize.errors import UnsupportedModel
from outsize.models.spec import ModuleSpec, Origin, TensorSpec
from outsize.models.tracing.measure import Measured
from outsize.models.tracing.parts import divide
from outsize.models.tracing.recording import Packed, copies, is_whole, sources
from outsize.models.tracing.units import Unit, Weight


def name_of(dtype: torch.dtype) -> str:
    """torch's name of a data type: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def origin_of(weight: Weight) -> Origin:
    """What a weight is made of; of routed experts that are stored one by one, expert after expert."""
    stored = list(sources(weight.expression))
    if not weight.experts:
        return Origin(tuple(s.name for s in stored), copies(weight.expression))
    matrices = [matrix for of_one in weight.experts for matrix in of_one]
    if _are_apart(weight):
        stored = [s for matrix in matrices for s in sources(matrix)]
    return Origin(tuple(s.name for s in stored), any(copies(matrix) for matrix in matrices))


def _are_apart(weight: Weight) -> bool:
    """Whether it is made of experts that are stored one by one."""
    stored = set(sources(weight.expression))
    return bool(weight.experts) and all(s in stored for matrix in weight.experts[0] for s in sources(matrix))


def module_spec(unit: Unit, units: Sequence[Unit], measured: Measured) -> ModuleSpec:
    """The ModuleSpec of one of a skeleton's units. Raises UnsupportedModel for weights of several types or shapes."""
    parts = _parts(unit, units, measured)
    tensors = tuple(
        TensorSpec(
            w.name,
            _stored_shape(w),
            _stored_dtype(w),
            name_of(w.dtype),
            _quantisable(unit, w),
            parts[w.name],
            w.packing,
            _span(w),
            sum(len(matrices) for matrices in w.experts) if _are_apart(w) else 1,
        )
        for w in unit.weights
    )
    role = unit.role
    rows = all(len(w.shape) == 2 for w in unit.weights)
    if role == "embedding" and not (rows and (unit.tied or all(_by_rows(w, measured) for w in unit.weights))):
        role = "other"  # a table that is used as a whole, or put together from several, cannot rest on disk
    experts = len(unit.weights[0].experts)
    per_token = measured.per_token.get(unit.name, experts)
    return ModuleSpec(
        unit.name, role, unit.stack, tensors, measured.cache[unit.name], unit.tied, experts, min(per_token, experts)
    )


def _parts(unit: Unit, units: Sequence[Unit], measured: Measured) -> dict[str, int]:
    """The part of each of a unit's weights; of routed experts, the part of their block that they compute after."""
    parts = divide(unit, measured.turns)
    block = next((u for u in units if u.role == "block" and unit.name.startswith(f"{u.name}.")), None)
    if unit.role != "experts" or block is None:
        return parts
    spans, of_block = measured.turns.spans, divide(block, measured.turns)
    begin = spans.get(id(unit.modules[0]), (0, 0))
    before = [of_block[w.name] for w in block.weights if spans.get(id(w.slots[0].module), begin) < begin]
    return dict.fromkeys(parts, max(before, default=0))


def _quantisable(unit: Unit, weight: Weight) -> bool:
    """Whether it is what int8 and int4 quantise: matrices of the checkpoint, one by one, that inputs multiply."""
    if weight.experts:
        return all(is_whole(matrix) for matrices in weight.experts for matrix in matrices)
    return weight.matmul and unit.role == "block" and is_whole(weight.expression)


def _by_rows(weight: Weight, measured: Measured) -> bool:
    """Whether no more than rows of a weight are used, and they lie somewhere as they are."""
    return weight.name in measured.turns.looked_up and len(list(sources(weight.expression))) == 1


def _span(weight: Weight) -> int:
    """Bytes that reading a weight takes where one of its sources is a strided view; 0 where none is."""
    stored = list(sources(weight.expression))
    return sum(s.nbytes for s in stored) if any(s.strides is not None for s in stored) else 0


def _stored_shape(weight: Weight) -> tuple[int, ...]:
    """The shape of a weight; of packed experts [matrices, out, in], for each of them has its own scales."""
    if weight.packing is None or not weight.experts:
        return weight.shape
    matrices = [matrix for of_one in weight.experts for matrix in of_one]
    shape, *others = {matrix.tensor.shape for matrix in matrices if isinstance(matrix, Packed)}
    if others:
        raise UnsupportedModel(f"{weight.name} is put together from packed weights of several shapes")
    return (len(matrices), *shape)


def _stored_dtype(weight: Weight) -> str:
    if weight.packing is not None:  # what streaming has to convert is scales, if it has to
        return weight.packing.scale if weight.packing.casts_scales else name_of(weight.dtype)
    kinds = {source.dtype for source in sources(weight.expression)}
    if len(kinds) != 1:
        raise UnsupportedModel(f"{weight.name} is made from tensors of several data types: {', '.join(sorted(kinds))}")
    return kinds.pop()
