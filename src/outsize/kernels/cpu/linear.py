"""``linear`` in the compiled kernels: few rows by one reading of the weights, many by tiles that torch multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from outsize.errors import OutsizeError
from outsize.kernels.cpu.library import Kernels, kernels
from outsize.models.formats import Packing

LARGEST, LARGEST_FOLDED = 32639, 1919  # what activations are rounded to beside packed weights, at least
MOST_ROWS = 16  # of activations that one reading of the weights serves; more go to torch's matmul
TILED_FROM = 4  # rows: more in bf16 go to torch's matmul, where the processor multiplies tiles (AMX)
SCRATCH_BYTES = 16 << 20  # most that a weight multiplied out takes at a time, for many rows
TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as in kernels.h
BLOCK = 128  # inputs that the kernels take at a time
WORD_ROWS = 8  # rows that share a word of zero points, at most
# As in kernels.h.
NIBBLES, BYTES, SIGNED_BYTES, _, E2M1, E4M3 = range(6)
NO_ZEROS, PACKED_ZEROS, BYTE_ZEROS = range(3)

Tensor = torch.Tensor


def takes_native(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """A contiguous weight of a type that the kernels know, unless torch's matrix units are faster."""
    build = kernels()
    if build is None or x.dtype not in TYPES or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return False
    with torch._C.DisableTorchFunctionSubclass():
        rows = x.numel() // x.shape[-1]
        return x.shape[-1] == weight.shape[-1] and knows_native(build, x.dtype, weight, rows)


def knows_native(build: Kernels, dtype: torch.dtype, weight: Tensor, rows: int) -> bool:
    """Whether that many rows of that type are multiplied by this weight in the kernels, and not by torch's tiles."""
    stored = weight.dtype
    tiled = build.tiles and rows > TILED_FROM and dtype == stored == torch.bfloat16
    return not tiled and stored in TYPES and weight.is_cpu and weight.is_contiguous()


def native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A few rows by a plain weight."""
    build = build_in_use()
    with torch._C.DisableTorchFunctionSubclass():
        (out, inputs), rows = weight.shape, x.numel() // x.shape[-1]
        y = x.new_empty((*x.shape[:-1], out))
        x, bias = x.contiguous(), _bias(bias, x)
        status = build.plain(
            build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype],
            weight.data_ptr(), TYPES[weight.dtype], None if bias is None else bias.data_ptr(), y.data_ptr(),
        )  # fmt: skip
    return _checked(status, y, rows, inputs)


def takes_packed(x: Tensor, weight: Any, bias: Tensor | None) -> bool:
    """A quantised weight whose groups and layout the kernels know."""
    if kernels() is None or x.dtype not in TYPES or (torch.is_grad_enabled() and x.requires_grad):
        return False
    _, inputs, described = described_packed(weight)
    return bool(described) and x.shape[-1] == inputs


def packed(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """A few rows by a quantised weight."""
    build = build_in_use()
    out, inputs, described = weight.described
    rows = x.numel() // inputs
    x, bias = x.contiguous(), _bias(bias, x)
    y = x.new_empty((*x.shape[:-1], out))
    status = build.packed(
        build.index, torch.get_num_threads(), rows, inputs, out, x.data_ptr(), TYPES[x.dtype], *described,
        None if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return _checked(status, y, rows, inputs)


def takes_bf12(x: Tensor, weight: Any, bias: Tensor | None) -> bool:
    """Any 12-bit weight. Raises ValueError where shapes do not match."""
    out, inputs = weight.described[:2]
    if x.shape[-1] != inputs or (bias is not None and bias.shape != (out,)):
        raise ValueError(f"{tuple(x.shape)} times a weight of {(out, inputs)}")
    grads = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return kernels() is not None and not grads and x.dtype in TYPES


def bf12(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """A few rows by a 12-bit weight."""
    build = build_in_use()
    out, inputs = weight.described[:2]
    rows = x.numel() // inputs
    x, bias = x.contiguous(), _bias(bias, x)
    y = x.new_empty((*x.shape[:-1], out))
    status = build.bf12_linear(
        build.index, torch.get_num_threads(), rows, x.data_ptr(), TYPES[x.dtype], *weight.described,
        None if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return _checked(status, y, rows, inputs)


def bf12_by_tiles(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """Many rows by a 12-bit weight, of which some rows at a time are expanded."""
    out, inputs = weight.described[:2]
    flat, bias = x.reshape(-1, inputs), _bias(bias, x)
    step = max(16, SCRATCH_BYTES // (2 * inputs) // 16 * 16)
    tile = torch.empty(min(step, out), inputs, dtype=torch.bfloat16)
    y = flat.new_empty((len(flat), out))
    wide = flat if flat.dtype == torch.bfloat16 else flat.float()  # fp16 holds no bf16
    for first in range(0, out, step):
        last = min(first + step, out)
        some = weight.expanded(first, last, tile[: last - first])
        part = None if bias is None else bias[first:last].to(wide.dtype)
        y[:, first:last] = functional.linear(wide, some.to(wide.dtype), part)
    return y.view(*x.shape[:-1], out)


def described_packed(weight: Any) -> tuple[int, int, tuple[Any, ...]]:
    """``PackedWeight.described``, made when it is asked for first."""
    if weight.described is None:
        weight.described = _describe(weight, weight.packing)
    described: tuple[int, int, tuple[Any, ...]] = weight.described
    return described


def _describe(weight: Any, packing: Packing) -> tuple[int, int, tuple[Any, ...]]:
    """Outputs, inputs, and the weight as the kernels want to be told of it; nothing for what they do not know."""
    values, scale, zero = weight.values, weight.scale, weight.zero_point
    out, inputs = weight.shape
    if packing.kind != "int":
        return out, inputs, _floats(weight, packing)
    stored = values.shape[1]
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


def _floats(weight: Any, packing: Packing) -> tuple[Any, ...]:
    """fp8 and mxfp4: of fp8 blocks of 128 inputs or a multiple, and as many outputs."""
    values, scale, square = weight.values, weight.scale, packing.rows == packing.group and packing.group % BLOCK == 0
    if not _within_reach(values, scale, None) or (packing.kind == "fp8" and not (square and scale.dtype in TYPES)):
        return ()
    kind, scales = (E4M3, TYPES[scale.dtype]) if packing.kind == "fp8" else (E2M1, 0)
    stride = weight.shape[1] * packing.bits // 8
    return values.data_ptr(), kind, stride, packing.group, BLOCK, scale.data_ptr(), scales, None, NO_ZEROS


def largest(packing: Packing, activations: torch.dtype) -> int:
    """The integer that the largest activation of a block becomes, beside weights that are packed so; at least."""
    return LARGEST_FOLDED if packing.format == "int4" and activations == torch.bfloat16 else LARGEST


def block_of(group: int, inputs: int) -> int:
    """Inputs that share one scale of activations: at most 128, and all of one group; 0: the kernels know no such."""
    if group % 128 == 0 or group >= inputs:
        return 128
    return 64 if group % 64 == 0 else 32 if group % 32 == 0 else 0


def _within_reach(values: Tensor, scale: Tensor, zero: Tensor | None) -> bool:
    return values.is_cpu and values.is_contiguous() and scale.is_contiguous() and (zero is None or zero.is_contiguous())


def packed_by_tiles(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """Some rows of the weight at a time, multiplied out into scratch that torch's matmul reads."""
    build = build_in_use()
    out, inputs, described = weight.described
    x, bias = x.contiguous(), _bias(bias, x)
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


def in_type_of(x: Tensor, bias: Tensor) -> Tensor:
    """A bias as the kernels read it."""
    return bias if bias.dtype == x.dtype and bias.is_contiguous() else bias.to(x.dtype).contiguous()


def _bias(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else in_type_of(x, bias)


def build_in_use() -> Kernels:
    """The build, where there is known to be one."""
    build = kernels()
    assert build is not None
    return build


def _checked(status: int, y: Tensor, rows: int, inputs: int) -> Tensor:
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {inputs}")
    return y
