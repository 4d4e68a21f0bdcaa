"""What the compiled kernels compute, in plain torch: their reference in tests, and what runs where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from outsize.models.formats import WORD_BITS, Packing
from outsize.planner.footprint import UNPACKED_BYTES, UNPACKED_BYTES_PER_ELEMENT

# The numbers of four bits: a sign, two bits of exponent, one of mantissa.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
ROWS = 8  # or a multiple: so many share a word of zero points, at most


def dequantise(
    values: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    packing: Packing,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """A packed weight multiplied out: ``(value - zero point) * scale``, [out, in] of ``dtype``.

    ``scale``: [out, groups], of each row also where several share one. Each product is rounded once: compressed-tensors
    multiplies in the scales' own data type, transformers fp8 and mxfp4 in float32.
    """
    rows, inputs = shape
    if packing.kind != "int":
        return _floats(values, scale, packing, shape, dtype)
    integers = unpack(values, packing.bits, inputs) if packing.words else values
    weight = integers.to(dtype)  # [out, in]
    if zero_point is not None:
        zeros = unpack(zero_point.t(), packing.bits, rows).t() if packing.words else zero_point
        _by_group(weight, packing.group, zeros.to(dtype), torch.Tensor.sub_)
    _by_group(weight, packing.group, scale.to(dtype), torch.Tensor.mul_)
    return weight


def _floats(
    values: torch.Tensor, scale: torch.Tensor, packing: Packing, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """fp8 and mxfp4 multiplied out."""
    wide = torch.promote_types(dtype, torch.float32)
    if packing.kind == "fp8":
        weight = values.to(wide)
    else:
        raw = torch.stack((values & 15, values >> 4), dim=-1)  # [out, in / 32, 16, 2], the low half first
        table = torch.tensor(E2M1, dtype=wide, device=values.device)
        weight = table.index_select(0, raw.view(-1).int()).view(shape)
        scale = powers(scale)
    _by_group(weight, packing.group, scale.to(wide), torch.Tensor.mul_)
    return weight.to(dtype)


def powers(exponents: torch.Tensor) -> torch.Tensor:
    """``2 ** (s - 127)`` of bytes s, in float32, exactly; infinite for 255, which stands for no number."""
    return (exponents.int() << 23).clamp_(min=1 << 22).view(torch.float32)  # 2 ** -127 is no normal number


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
        return functional.linear(x, multiplied_out(weight, 0, out, x.dtype), bias)
    y = x.new_empty((*x.shape[:-1], out))
    for first in range(0, out, step):
        last = min(first + step, out)
        part = None if bias is None else bias[first:last]
        y[..., first:last] = functional.linear(x, multiplied_out(weight, first, last, x.dtype), part)
    return y


def multiplied_out(weight: Any, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
    """Some rows of a PackedWeight, [last - first, in] of ``dtype``. ``first`` begins a word of zero points."""
    packing: Packing = weight.packing
    zero_point, together = weight.zero_point, packing.rows
    if zero_point is not None:
        per_row = packing.bits if packing.words else WORD_BITS  # bits of a column that a row takes
        zero_point = zero_point[first * per_row // WORD_BITS : -(-last * per_row // WORD_BITS)]
    scale = weight.scale[first // together : -(-last // together)]
    if together > 1:
        begin = first % together
        scale = scale.repeat_interleave(together, dim=0)[begin : begin + last - first]
    return dequantise(weight.values[first:last], scale, zero_point, packing, (last - first, weight.shape[1]), dtype)


def _by_group(
    weight: torch.Tensor, group: int, values: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    """Changes a weight [out, in] in place by one value per group [out, groups]; the last group may be cut short."""
    inputs = weight.shape[1]
    if inputs % group:
        change(weight, values.repeat_interleave(group, dim=-1)[:, :inputs])
    else:
        change(weight.view(len(weight), -1, group), values.unsqueeze(-1))
