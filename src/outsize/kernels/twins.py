"""What the compiled kernels compute, in plain torch: their reference in tests, and what runs where there are none."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from outsize.facts.packing import Packing


def dequantise(
    values: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    packing: Packing,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A packed weight multiplied out: ``(integer - zero point) * scale``, [out, in] of ``dtype``.

    Each product is rounded once, as compressed-tensors does in the scales' own data type.
    """
    rows, inputs = shape
    integers = unpack(values, packing.bits, inputs) if packing.words else values
    weight = integers.to(dtype)  # [out, in]
    if zero_point is not None:
        zeros = unpack(zero_point.t(), packing.bits, rows).t() if packing.words else zero_point
        weight -= _spread(zeros.to(dtype), packing.group, inputs)
    weight *= _spread(scale.to(dtype), packing.group, inputs)
    return weight


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` integers of each row of int32 words: int8 [rows, count]. The lowest bits come first."""
    raw = words.reshape(-1).view(torch.uint8).view(len(words), -1)  # [rows, 4 * words], the lowest byte first
    if bits == 4:
        raw = torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2)
    return (raw[:, :count] - (1 << (bits - 1))).view(torch.int8)  # stored unsigned; wraps to what it stands for


def _spread(per_group: torch.Tensor, group: int, inputs: int) -> torch.Tensor:
    """One value per group [out, groups] as one per input [out, in]; the last group may be cut short."""
    if per_group.shape[-1] == 1:
        return per_group
    return per_group.repeat_interleave(group, dim=-1)[:, :inputs]


def linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``functional.linear`` with a plain weight, or with a PackedWeight multiplied out in x's data type."""
    packing = getattr(weight, "packing", None)
    if packing is not None:
        shape = (weight.values.shape[0], x.shape[-1])
        weight = dequantise(weight.values, weight.scale, weight.zero_point, packing, shape, x.dtype)
    with torch._C.DisableTorchFunctionSubclass():
        return functional.linear(x, weight, bias)
