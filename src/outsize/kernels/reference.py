"""What the compiled kernels compute, in plain torch: their reference in tests, and what runs where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from outsize.models.formats import WORD_BITS, Packing
from outsize.planner.footprint import UNPACKED_BYTES, UNPACKED_BYTES_PER_ELEMENT

ROWS = 8  # or a multiple: so many share a word of zero points, at most


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
        _by_group(weight, packing.group, zeros.to(dtype), torch.Tensor.sub_)
    _by_group(weight, packing.group, scale.to(dtype), torch.Tensor.mul_)
    return weight


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` integers of each row of int32 words: int8 [rows, count]. The lowest bits come first."""
    raw = words.reshape(-1).view(torch.uint8).view(len(words), -1)  # [rows, 4 * words], the lowest byte first
    if bits == 4:
        raw = torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2)
    return (raw[:, :count] - (1 << (bits - 1))).view(torch.int8)  # stored unsigned; wraps to what it stands for


def linear(x: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``functional.linear`` with a plain weight, a Bf12Weight expanded, or a PackedWeight multiplied out in x's type.

    Of a large one, so many rows at a time that unpacking them takes no more than is planned for.
    """
    packing: Packing | None = getattr(weight, "packing", None)
    if packing is None:
        weight = weight.expanded() if getattr(weight, "form", "") == "bf12" else weight
        with torch._C.DisableTorchFunctionSubclass():
            return functional.linear(x, weight, bias)
    out, inputs = weight.shape
    step = max(ROWS, UNPACKED_BYTES // UNPACKED_BYTES_PER_ELEMENT // inputs // ROWS * ROWS)
    if out <= step:
        return functional.linear(x, _rows(weight, packing, 0, out, x.dtype), bias)
    y = x.new_empty((*x.shape[:-1], out))
    for first in range(0, out, step):
        last = min(first + step, out)
        part = None if bias is None else bias[first:last]
        y[..., first:last] = functional.linear(x, _rows(weight, packing, first, last, x.dtype), part)
    return y


def _rows(weight: Any, packing: Packing, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
    """Some rows of a PackedWeight, multiplied out. ``first`` begins a word of zero points."""
    zero_point = weight.zero_point
    if zero_point is not None:
        per_row = packing.bits if packing.words else WORD_BITS  # bits of a column that a row takes
        zero_point = zero_point[first * per_row // WORD_BITS : -(-last * per_row // WORD_BITS)]
    shape = (last - first, weight.shape[1])
    return dequantise(weight.values[first:last], weight.scale[first:last], zero_point, packing, shape, dtype)


def _by_group(
    weight: torch.Tensor, group: int, values: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    """Changes a weight [out, in] in place by one value per group [out, groups]; the last group may be cut short."""
    inputs = weight.shape[1]
    if inputs % group:
        change(weight, values.repeat_interleave(group, dim=-1)[:, :inputs])
    else:
        change(weight.view(len(weight), -1, group), values.unsqueeze(-1))
