"""Routed experts: transformers holds those of a layer as one tensor; here each is found by itself in the checkpoint.

Every token needs a few of many. So what is read is one expert, never all of a layer's, unless all are asked for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from outsize.models.expert_slices import expert_slice
from outsize.models.tracing.recording import Call, Expression, Packed, Source, sources
from outsize.models.tracing.units import Weight

ATEN = torch.ops.aten
# What transformers' decorator `use_experts_implementation` leaves in a module whose experts it may compute in any way.
MARKS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate")
FUSED = ("gate_up_proj", "up_proj", "down_proj")  # [experts, out, in], or [experts, in, out] where `is_transposed`
ARGUMENTS = 3  # hidden states [tokens, width], experts of each token [tokens, k], their weights [tokens, k]

WIDE_SUM = re.compile(r"zeros_like\(hidden_states, dtype=(torch\.float32|top_k_weights\.dtype)\)")

Matrices = tuple[Expression, ...]  # [out_i, in] each: their outputs stand beside each other


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the routed experts of a layer, and computes them as transformers' interface says."""
    marked = all(hasattr(module, mark) for mark in MARKS)
    return marked and len(inspect.signature(module.forward).parameters) == ARGUMENTS


def sum_dtype(module: nn.Module, hidden: torch.Tensor, weights: torch.Tensor) -> torch.dtype:
    """The type in which a module's own ``forward`` adds up what a token's experts give: mostly that of ``hidden``.

    Nothing but its source says so: Nemotron-H adds in the type of the routing weights, and rounds once.
    """
    match _wide_sum(type(module)):  # type: ignore[arg-type]  # types have a hash of their own
        case "torch.float32":
            return torch.float32
        case "top_k_weights.dtype":
            return weights.dtype
    return hidden.dtype


@cache
def _wide_sum(of: type[nn.Module]) -> str:
    try:
        found = WIDE_SUM.search(inspect.getsource(inspect.unwrap(of.forward)))
    except (OSError, TypeError):  # a class without source
        return ""
    return found[1] if found else ""


def find_experts(weights: Mapping[int, Weight]) -> dict[int, Weight]:
    """The weights, with the matrices of every expert where they are a layer's routed experts.

    Where the matrices of one of a module's weights cannot be told from each other, the module stays whole.
    """
    split: dict[int, Weight] = {}
    whole: set[int] = set()
    for key, weight in weights.items():
        module = weight.slots[0].module
        if len(weight.slots) > 1 or weight.slots[0].attribute not in FUSED or not is_experts(module):
            continue
        matrices = split_experts(weight.expression, weight.shape, transposed=bool(module.is_transposed))
        if matrices is None:
            whole.add(id(module))
        else:
            split[key] = replace(weight, experts=tuple(matrices))
    return {k: split[k] if k in split and id(w.slots[0].module) not in whole else w for k, w in weights.items()}


def split_experts(expression: Expression, shape: Sequence[int], *, transposed: bool) -> list[Matrices] | None:
    """The matrices [out, in] of each expert of a fused weight; None where they do not lie apart.

    ``shape``: [experts, out, in], or [experts, in, out] where it is ``transposed``.
    """
    if len(shape) != 3:
        return None
    return _split(expression, shape[0], transposed)


def _split(expression: Expression, count: int, transposed: bool) -> list[Matrices] | None:
    if isinstance(expression, Source | Packed):
        return _slices(expression, count, transposed)
    op, args = expression.op, expression.args
    if op is ATEN.stack.default and len(args[0]) == count and (len(args) == 1 or args[1] == 0):
        return [(_turned(one, transposed),) for one in args[0]]
    if op is ATEN.cat.default and len(args) > 1 and args[1] % 3 == (2 if transposed else 1):
        parts = [_split(one, count, transposed) for one in args[0]]
        return None if None in parts else [sum((part[i] for part in parts if part), ()) for i in range(count)]
    if op is ATEN.clone.default:
        return _split(args[0], count, transposed)
    if op is ATEN._to_copy.default:
        inner = _split(args[0], count, transposed)
        return inner and [tuple(_cast(matrix, expression.kwargs) for matrix in matrices) for matrices in inner]
    return _split(args[0], count, not transposed) if _transposes(expression) else None


def _slices(leaf: Source | Packed, count: int, transposed: bool) -> list[Matrices] | None:
    """The matrices of experts that are stored as one tensor, or packed as one."""
    shape, strided = leaf.tensor.shape, any(tensor.strides is not None for tensor in sources(leaf))
    if strided or len(shape) != 3 or shape[0] != count:
        return None
    if isinstance(leaf, Packed):
        return [(_turned(replace(leaf, tensor=leaf.tensor.expert(i)), transposed),) for i in range(count)]
    return [(_turned(Source(expert_slice(leaf.tensor, i)), transposed),) for i in range(count)]


def _transposes(call: Call) -> bool:
    """Whether it exchanges the last two of three dimensions."""
    if call.op is ATEN.transpose.int:
        return sorted(dim % 3 for dim in call.args[1:]) == [1, 2]
    return call.op is ATEN.permute.default and [dim % 3 for dim in call.args[1]] == [0, 2, 1]


def _turned(matrix: Expression, transposed: bool) -> Expression:
    return Call(ATEN.t.default, (matrix,), {}) if transposed else matrix


def _cast(matrix: Expression, kwargs: Mapping[str, Any]) -> Expression:
    """A matrix in another data type: the cast stands inside of a transposition, so that a source is cast as it is."""
    if isinstance(matrix, Call) and matrix.op is ATEN.t.default:
        return replace(matrix, args=(_cast(matrix.args[0], kwargs),))
    return Call(ATEN._to_copy.default, (matrix,), dict(kwargs))
