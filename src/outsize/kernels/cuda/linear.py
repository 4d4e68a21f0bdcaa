"""``linear`` with packed weights on a GPU: which kernel multiplies how many rows, and with which tiles.

1 to 8 rows read every word once (``gemv``); up to 64 use matrix units on weights expanded in registers (``gemm``); more
expand a part of the weight at a time into 16 bits and leave the product to cuBLAS (``expand``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch.nn import functional

from outsize.models.formats import Packing

Tensor = torch.Tensor
GEMV_ROWS = 8
GEMM_ROWS = 64
LEAST_CAPABILITY = (7, 5)  # Turing: below that, Triton has no matrix units to compile for
SCRATCH_BYTES = 64 << 20  # most that a weight multiplied out takes at a time
WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Launch:
    """How a product is computed: which kernel, its grid, its tiles, and the bytes of weights that it reads."""

    kernel: Literal["gemv", "gemm", "expand"]
    grid: tuple[int, int]
    blocks: tuple[int, ...]  # (N, words), (M, N, K) or (K,)
    warps: int
    bytes_read: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile sizes of one generation of cards: rows of the weight and words per program, and warps, by rows of x."""

    gemv: tuple[tuple[int, int, int, int], ...]  # (most rows of x, BLOCK_N, BLOCK_W, warps)
    gemm: tuple[int, int, int]  # (BLOCK_N, BLOCK_K, warps)


# By compute capability, the highest that is not above the card's. Measured on 9.0 (bench/gpu_kernels.py --tune); the
# others use the same until somebody measures there.
DEFAULT_TILES = Tiles(gemv=((1, 8, 128, 4), (2, 8, 128, 4), (4, 4, 128, 4), (8, 2, 128, 2)), gemm=(32, 64, 4))
TILES: dict[tuple[int, int], Tiles] = {(7, 5): DEFAULT_TILES}


def launch(
    rows: int, shape: tuple[int, int], packing: Packing, scale_bytes: int, capability: tuple[int, int] = (7, 5)
) -> Launch:
    """The launch for x [rows, K] and a weight [N, K]. ``scale_bytes``: of one scale. Pure."""
    out, inputs = shape
    words = -(-inputs * packing.bits // 32)
    tiles = TILES[max(known for known in TILES if known <= capability)]
    read = out * (words * WORD_BYTES + packing.groups(inputs) * scale_bytes)
    if rows <= GEMV_ROWS:
        _, block_n, block_w, warps = next(tile for tile in tiles.gemv if rows <= tile[0])
        return Launch("gemv", (-(-out // block_n), 1), (block_n, block_w), warps, read)
    if rows <= GEMM_ROWS:
        block_n, block_k, warps = tiles.gemm
        block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
        return Launch("gemm", (-(-out // block_n), -(-rows // block_m)), (block_m, block_n, block_k), warps, read)
    return Launch("expand", (out, -(-inputs // 1024)), (1024,), 4, read)


@cache
def interpreted() -> bool:
    """Whether Triton's interpreter computes the kernels, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a card."""
    return (7, 5) if device.type == "cpu" else torch.cuda.get_device_capability(device)


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on that device: Triton is there, and the card is at least of Turing's generation."""
    if find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return interpreted()
    return device.type == "cuda" and capability(device) >= LEAST_CAPABILITY


def multiplies(x: Tensor, weight: Any) -> bool:
    """Whether these kernels multiply x with a PackedWeight; plain torch does what they do not."""
    packing: Packing = weight.packing
    return (
        available(x.device)
        and weight.zero_point is None
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and weight.values.is_contiguous()
        and weight.scale.is_contiguous()
        and (packing.words or (packing.bits == 8 and weight.shape[1] % WORD_BYTES == 0))
        and (packing.group % 32 == 0 or packing.group >= weight.shape[1])
        and x.shape[-1] == weight.shape[1]
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x [..., K] @ weight [N, K].T + bias [N], in x's data type, summed in fp32."""
    out, inputs = weight.shape
    flat = x.reshape(-1, inputs)
    flat = flat if flat.is_contiguous() else flat.contiguous()
    how = launch(len(flat), (out, inputs), weight.packing, weight.scale.element_size(), capability(x.device))
    if how.kernel == "expand" or (x.dtype == torch.float32 and how.kernel == "gemm"):
        y = _expanded(flat, weight, bias)
    else:
        y = flat.new_empty((len(flat), out))
        (_gemv if how.kernel == "gemv" else _gemm)(how, flat, weight, bias, y)
    return y.view(*x.shape[:-1], out)


def _words(weight: Any) -> Tensor:
    values: Tensor = weight.values
    return values if weight.packing.words else values.view(torch.int32)


def _gemv(how: Launch, x: Tensor, weight: Any, bias: Tensor | None, y: Tensor) -> None:
    from outsize.kernels.cuda.triton_kernels import gemv_kernel, spread_kernel

    packing, words = weight.packing, _words(weight)
    rows, inputs = x.shape
    width = words.shape[1]
    padded = 1 << (rows - 1).bit_length()
    planes = x.new_empty((padded, 32 // packing.bits, width), dtype=torch.float32)
    spread_kernel[(padded, -(-width // 256))](x, planes, rows, inputs, width, BITS=packing.bits, BLOCK=256, num_warps=4)
    block_n, block_w = how.blocks
    group_words = max(packing.group * packing.bits // 32, 1) if packing.group < inputs else width
    gemv_kernel[how.grid[:1]](
        planes, words, weight.scale, x if bias is None else bias, y, rows, len(words), width,
        weight.scale.shape[1], group_words, M=padded, BITS=packing.bits, SIGNED=not packing.words,
        HAS_BIAS=bias is not None, BLOCK_N=block_n, BLOCK_W=block_w, num_warps=how.warps,
    )  # fmt: skip


def _gemm(how: Launch, x: Tensor, weight: Any, bias: Tensor | None, y: Tensor) -> None:
    from outsize.kernels.cuda.triton_kernels import gemm_kernel

    packing, words = weight.packing, _words(weight)
    rows, inputs = x.shape
    block_m, block_n, block_k = how.blocks
    gemm_kernel[how.grid](
        x, words, weight.scale, x if bias is None else bias, y, rows, len(words), inputs, words.shape[1],
        weight.scale.shape[1], packing.group, BITS=packing.bits, SIGNED=not packing.words, HAS_BIAS=bias is not None,
        WIDE=interpreted(), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=how.warps,
    )  # fmt: skip


def _expanded(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """Some rows of the weight at a time, multiplied out into scratch that cuBLAS reads."""
    from outsize.kernels.cuda.triton_kernels import expand_kernel

    packing, words = weight.packing, _words(weight)
    out, inputs = weight.shape
    step = min(out, max(SCRATCH_BYTES // (inputs * x.element_size()), 1))
    scratch = x.new_empty((step, inputs))
    y = x.new_empty((len(x), out))
    for first in range(0, out, step):
        some = scratch[: out - first]
        expand_kernel[(len(some), -(-inputs // 1024))](
            words[first:], weight.scale[first:], some, inputs, words.shape[1], weight.scale.shape[1], packing.group,
            BITS=packing.bits, SIGNED=not packing.words, BLOCK_K=1024, num_warps=4,
        )  # fmt: skip
        part = slice(first, first + len(some))
        y[:, part] = functional.linear(x, some, None if bias is None else bias[part])
    return y
