"""``linear`` by the fastest way there is for these numbers of rows and types: a kernel, or torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from outsize.errors import OutsizeError
from outsize.kernels import reference
from outsize.kernels.cpu.library import Kernels, kernels
from outsize.kernels.cuda import linear as cuda
from outsize.models.formats import Packing

LARGEST, LARGEST_FOLDED = 32639, 1919  # what activations are rounded to beside packed weights, at least
MOST_ROWS = 16  # of activations that one reading of the weights serves; more go to torch's matmul
TILED_FROM = 4  # rows: more in bf16 go to torch's matmul, where the processor multiplies tiles (AMX)
SCRATCH_BYTES = 16 << 20  # most that a weight multiplied out takes at a time, for many rows
TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as in kernels.h
WORD_ROWS = 8  # rows that share a word of zero points, at most
# As in kernels.h.
NIBBLES, BYTES, SIGNED_BYTES = range(3)
NO_ZEROS, PACKED_ZEROS, BYTE_ZEROS = range(3)

Tensor = torch.Tensor


def linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in].T + bias [out], in x's data type.

    ``weight``: plain, or a PackedWeight. Up to 16 rows of x go to the C kernels, which read the weights once and sum in
    fp32. bf16, fp16 and fp32 weights are multiplied as they are. For packed ones, activations are rounded in blocks of
    128 inputs (64 or 32 where groups are smaller): to 16 bits, ``largest`` = 32639, or bf16 beside int4 to 12, 1919.
    Products are summed exactly within a block, so that with ``most`` the largest |x| of a block
    ``|error| <= sum over blocks of most / (2 * largest) * sum|w in block|``, and for fp32's rounding at most
    ``(blocks + 16) * 2**-23 * sum|x| * (|w| + |zero| * scale)``, zero being 2**(bits - 1) plus the zero point; the
    result is rounded to x's type. A row gives the same bits whatever rows are beside it. Activations that are not
    finite give NaN; those below 2**-100 count as zero.

    More rows of packed weights are multiplied by torch with tiles of at most 16 MiB, rounded to x's type.
    Other devices, types and layouts, and OUTSIZE_KERNELS=torch: the twins. No gradients but through these.
    """
    build = kernels()
    packing = getattr(weight, "packing", None)
    if packing is not None and x.numel() and not x.is_cpu and cuda.multiplies(x, weight):
        return cuda.linear(x, weight, bias)
    if build is None or not x.is_cpu or x.dtype not in TYPES or not x.numel():
        return reference.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or (packing is None and weight.requires_grad)):
        return reference.linear(x, weight, bias)
    if packing is not None:
        return _packed(build, x, weight, packing, bias)
    return _plain(build, x, weight, bias)


def _plain(build: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    *outer, inputs = x.shape
    rows = x.numel() // inputs
    with torch._C.DisableTorchFunctionSubclass():
        if rows > TILED_FROM and build.tiles and x.dtype == weight.dtype == torch.bfloat16:
            return reference.linear(x, weight, bias)
        if rows > MOST_ROWS or weight.dtype not in TYPES or not weight.is_cpu or not weight.is_contiguous():
            return reference.linear(x, weight, bias)
        out, expected = weight.shape
        if inputs != expected:
            return reference.linear(x, weight, bias)  # which says what does not match
        y = x.new_empty((*outer, out))
        x, bias = x.contiguous(), _bias(bias, x)
        status = build.plain(
            build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype],
            weight.data_ptr(), TYPES[weight.dtype], None if bias is None else bias.data_ptr(), y.data_ptr(),
        )  # fmt: skip
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {inputs}")
    return y


def _packed(build: Kernels, x: Tensor, weight: Any, packing: Packing, bias: Tensor | None) -> Tensor:
    *outer, inputs = x.shape
    if weight.described is None:
        weight.described = _describe(weight, packing)
    out, expected, described = weight.described
    if inputs != expected or not described:
        return reference.linear(x, weight, bias)  # which says what does not match
    rows = x.numel() // inputs
    x, bias = x.contiguous(), _bias(bias, x)
    if rows > MOST_ROWS:
        return _tiles(build, x, out, described, bias)
    y = x.new_empty((*outer, out))
    status = build.packed(
        build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype], *described,
        None if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {inputs}")
    return y


def _describe(weight: Any, packing: Packing) -> tuple[int, int, tuple[Any, ...]]:
    """Outputs, inputs, and the weight as the kernels want to be told of it; nothing for what they do not know."""
    values, scale, zero = weight.values, weight.scale, weight.zero_point
    out, stored = values.shape
    inputs = int(weight.shape[-1])
    block = block_of(packing.group, inputs)
    wide = (inputs * packing.bits + 31) // 32 if packing.words else inputs
    if not block or stored != wide or scale.dtype not in TYPES or not _within_reach(values, scale, zero):
        return out, inputs, ()
    kind = SIGNED_BYTES if not packing.words else NIBBLES if packing.bits == 4 else BYTES
    return out, inputs, (
        values.data_ptr(), kind, stored * 4 if packing.words else stored, packing.group, block,
        scale.data_ptr(), TYPES[scale.dtype], None if zero is None else zero.data_ptr(),
        NO_ZEROS if zero is None else PACKED_ZEROS if packing.words else BYTE_ZEROS,
    )  # fmt: skip


def largest(bits: int, activations: torch.dtype) -> int:
    """The integer that the largest activation of a block becomes, beside weights of that many bits; at least."""
    return LARGEST_FOLDED if bits == 4 and activations == torch.bfloat16 else LARGEST


def block_of(group: int, inputs: int) -> int:
    """Inputs that share one scale of activations: at most 128, and all of one group; 0: the kernels know no such."""
    if group % 128 == 0 or group >= inputs:
        return 128
    return 64 if group % 64 == 0 else 32 if group % 32 == 0 else 0


def _within_reach(values: Tensor, scale: Tensor, zero: Tensor | None) -> bool:
    return values.is_cpu and values.is_contiguous() and scale.is_contiguous() and (zero is None or zero.is_contiguous())


def _tiles(build: Kernels, x: Tensor, out: int, described: tuple[Any, ...], bias: Tensor | None) -> Tensor:
    """Some rows of the weight at a time, multiplied out into scratch that torch's matmul reads."""
    inputs = x.shape[-1]
    step = SCRATCH_BYTES // (inputs * x.element_size()) // WORD_ROWS * WORD_ROWS
    tile = x.new_empty((min(out, max(step, WORD_ROWS)), inputs))
    flat = x.view(-1, inputs)  # [rows, in]
    y = x.new_empty((flat.shape[0], out))
    for first in range(0, out, len(tile)):
        some = tile[: out - first]  # [up to step, in]
        build.dequantise(
            build.index, torch.get_num_threads(), inputs, first, first + len(some), *described,
            some.data_ptr(), TYPES[x.dtype],
        )  # fmt: skip
        part = slice(first, first + len(some))
        y[:, part] = functional.linear(flat, some, None if bias is None else bias[part])
    return y.view(*x.shape[:-1], out)


def _bias(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype).contiguous()
