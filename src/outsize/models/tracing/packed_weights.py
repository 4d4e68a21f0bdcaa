"""Packed weights in a model: each must be the whole weight of a Linear layer, and as its configuration says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from outsize.errors import DamagedModel, UnsupportedModel
from outsize.models.formats import Packing
from outsize.models.quantization import Quantisation
from outsize.models.tracing.recording import Call, Expression, Packed
from outsize.models.tracing.units import Weight


def settle(weights: Mapping[int, Weight], model: nn.Module, quantisation: Quantisation | None) -> dict[int, Weight]:
    """The weights with the packing of every packed one, as the configuration has it for the module that it is in.

    Raises UnsupportedModel for a packed weight that transformers does more with than take it, or that is no Linear
    layer's, and DamagedModel for one that the configuration does not name or that is not stored as it says.
    """
    if quantisation is None:
        return dict(weights)
    names = {id(module): name for name, module in model.named_modules()}
    return {key: _settled(weight, names, quantisation) for key, weight in weights.items()}


def _settled(weight: Weight, names: Mapping[int, str], quantisation: Quantisation) -> Weight:
    if weight.experts and _has_packed(weight.expression):
        return _settled_experts(weight, quantisation)
    packed, cast = _taken(weight.expression)
    if packed is None:
        if _has_packed(weight.expression):
            raise UnsupportedModel(
                f"{weight.name} is put together from packed weights, which cannot be done without unpacking them",
                remedy="the native checkpoint",
            )
        return weight
    if not all(isinstance(slot.module, nn.Linear) and slot.attribute == "weight" for slot in weight.slots):
        kinds = ", ".join(sorted({type(slot.module).__name__ for slot in weight.slots}))
        raise UnsupportedModel(
            f"{weight.name} is packed", need="the weight of a Linear layer", have=kinds, remedy="the native checkpoint"
        )
    module = weight.slots[0].module
    classes = [cls.__name__ for cls in type(module).__mro__]
    expression = _fitted(packed, cast, weight.name, names[id(module)], classes, quantisation)
    return replace(weight, expression=expression, packing=expression.packing)


def _fitted(
    packed: Packed,
    cast: torch.dtype | None,
    name: str,
    module: str,
    classes: Sequence[str],
    quantisation: Quantisation,
) -> Packed:
    """A packed weight with its packing: as its tensors say, or as the configuration has it for a module."""
    packing = packed.tensor.packing
    if packing is None:
        scheme = quantisation.scheme_of(module, classes)
        if scheme is None:
            raise DamagedModel(f"{name} is packed, but quantization_config does not name its module")
        packing = scheme.packing(packed.tensor.shape[-1], packed.tensor.dtype)
    return Packed(packed.tensor.fitted(packing), packing, cast)


def _settled_experts(weight: Weight, quantisation: Quantisation) -> Weight:
    """Routed experts: every matrix is a Linear layer's of its own to the configuration, under its checkpoint's name."""
    packings: set[Packing] = set()

    def settled(matrix: Expression) -> Expression:
        packed, cast = _taken(matrix)
        if packed is None:
            raise UnsupportedModel(f"{weight.name} is only partly packed", remedy="the native checkpoint")
        name = packed.tensor.name
        module = name.partition("[")[0].removesuffix(".weight")  # in one tensor with the others, it has a number
        fitted = _fitted(packed, cast, name, module, ["Linear"], quantisation)
        assert fitted.packing is not None
        packings.add(fitted.packing)
        return fitted

    experts = tuple(tuple(settled(matrix) for matrix in matrices) for matrices in weight.experts)
    if len(packings) > 1:
        raise UnsupportedModel(f"the experts of {weight.name} are packed in several ways")
    return replace(weight, experts=experts, packing=packings.pop())


def _taken(expression: Expression) -> tuple[Packed | None, torch.dtype | None]:
    """The packed weight that an expression takes as it is, or with its scales cast to another data type."""
    if isinstance(expression, Call) and expression.op is torch.ops.aten._to_copy.default:
        inner, dtype = expression.args[0], expression.kwargs["dtype"]
        return (inner, dtype) if isinstance(inner, Packed) else (None, None)
    return (expression, None) if isinstance(expression, Packed) else (None, None)


def _has_packed(expression: Any) -> bool:
    if isinstance(expression, Call):
        return _has_packed(expression.args) or _has_packed(tuple(expression.kwargs.values()))
    if isinstance(expression, list | tuple):
        return any(_has_packed(inner) for inner in expression)
    return isinstance(expression, Packed)
