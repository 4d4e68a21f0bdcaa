"""``linear`` by the fastest way there is for these numbers of rows and types: a kernel, or torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from outsize.errors import OutsizeError
from outsize.facts.packing import Packing
from outsize.kernels import twins
from outsize.kernels.library import Kernels, kernels

MOST_ROWS = 16  # of activations that one reading of the weights serves; more go to torch's matmul
SCRATCH_BYTES = 16 << 20  # most that a weight multiplied out takes at a time, for many rows
TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as in kernels.h
BLOCKS = (128, 64, 32)  # inputs that share one scale of activations: the largest that divides a group
WORD_ROWS = 8  # rows that share a word of zero points, at most
# As in kernels.h.
NIBBLES, BYTES, SIGNED_BYTES = range(3)
NO_ZEROS, PACKED_ZEROS, BYTE_ZEROS = range(3)

Tensor = torch.Tensor


def linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in].T + bias [out], in x's data type.

    ``weight``: plain, or a PackedWeight. Up to 16 rows of x go to the C kernels, which read the weights once and sum in
    fp32. bf16, fp16 and fp32 weights are multiplied as they are. For packed ones, activations are rounded to 16 bits in
    blocks of 128 inputs (64 or 32 where groups are smaller) and sums of a block are exact, so that
    ``|error| <= sum over blocks of max|x in block| / 65278 * sum|w in block|``; fp32 rounding adds at most
    ``(blocks + 4) * 2**-23 * sum|x * w|``, and the result is rounded to x's type. All builds, and any number of rows
    up to 16, give the same bits. Activations that are not finite give NaN; those below 2**-100 count as zero.

    More rows of packed weights are multiplied by torch with tiles of at most 16 MiB, rounded to x's type.
    Other devices, types and layouts, and OUTSIZE_KERNELS=torch: the twins. No gradients but through these.
    """
    build = kernels()
    if build is None or x.dtype not in TYPES or x.device.type != "cpu" or not x.numel():
        return twins.linear(x, weight, bias)
    packing = getattr(weight, "packing", None)
    if torch.is_grad_enabled() and (x.requires_grad or (packing is None and weight.requires_grad)):
        return twins.linear(x, weight, bias)
    if packing is not None:
        return _packed(build, x, weight, packing, bias)
    return _plain(build, x, weight, bias)


def _plain(build: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    with torch._C.DisableTorchFunctionSubclass():
        usable = (
            rows <= MOST_ROWS
            and weight.dtype in TYPES
            and weight.dim() == 2
            and weight.is_contiguous()
            and weight.shape[1] == inputs
            and weight.device.type == "cpu"
        )
        if not usable:
            return twins.linear(x, weight, bias)
        out = weight.shape[0]
        x, bias = x.contiguous(), _bias(bias, x)
        y = x.new_empty((*x.shape[:-1], out))
        status = build.plain(
            build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype],
            weight.data_ptr(), TYPES[weight.dtype], None if bias is None else bias.data_ptr(), y.data_ptr(),
        )  # fmt: skip
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {inputs}")
    return y


def _packed(build: Kernels, x: Tensor, weight: Any, packing: Packing, bias: Tensor | None) -> Tensor:
    inputs = x.shape[-1]
    values, scale, zero = weight.values, weight.scale, weight.zero_point
    out = values.shape[0]
    block = next((size for size in BLOCKS if packing.group % size == 0), 128 if packing.group >= inputs else 0)
    if not block or not _usable(values, scale, zero) or tuple(values.shape) != packing.values_shape((out, inputs)):
        return twins.linear(x, weight, bias)
    rows = x.numel() // inputs
    x, bias = x.contiguous(), _bias(bias, x)
    kind = SIGNED_BYTES if not packing.words else NIBBLES if packing.bits == 4 else BYTES
    stored = (
        values.data_ptr(), kind, values.shape[1] * values.element_size(), packing.group, block,
        scale.data_ptr(), TYPES[scale.dtype], 0 if zero is None else zero.data_ptr(),
        NO_ZEROS if zero is None else PACKED_ZEROS if packing.words else BYTE_ZEROS,
    )  # fmt: skip
    if rows > MOST_ROWS:
        return _tiles(build, x, out, stored, bias)
    y = x.new_empty((*x.shape[:-1], out))
    status = build.packed(
        build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype], *stored,
        None if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {inputs}")
    return y


def _usable(values: Tensor, scale: Tensor, zero: Tensor | None) -> bool:
    return (
        scale.dtype in TYPES
        and values.dim() == 2
        and values.device.type == "cpu"
        and values.is_contiguous()
        and scale.is_contiguous()
        and (zero is None or zero.is_contiguous())
    )


def _tiles(build: Kernels, x: Tensor, out: int, stored: tuple[int, ...], bias: Tensor | None) -> Tensor:
    """Some rows of the weight at a time, multiplied out into scratch that torch's matmul reads."""
    inputs = x.shape[-1]
    step = SCRATCH_BYTES // (inputs * x.element_size()) // WORD_ROWS * WORD_ROWS
    tile = x.new_empty((min(out, max(step, WORD_ROWS)), inputs))
    flat = x.view(-1, inputs)  # [rows, in]
    y = x.new_empty((flat.shape[0], out))
    for first in range(0, out, len(tile)):
        some = tile[: out - first]  # [up to step, in]
        build.dequantise(
            build.index, torch.get_num_threads(), inputs, first, first + len(some), *stored,
            some.data_ptr(), TYPES[x.dtype],
        )  # fmt: skip
        part = slice(first, first + len(some))
        y[:, part] = functional.linear(flat, some, None if bias is None else bias[part])
    return y.view(*x.shape[:-1], out)


def _bias(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype).contiguous()
