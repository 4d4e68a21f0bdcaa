"""``linear`` with packed weights on a GPU: which kernel multiplies how many rows, and with which tiles.

Up to 64 rows are multiplied with matrix units on weights expanded in registers (``dot``), or, a few rows on cards where
those do not pay, one by one (``gemv``). More rows expand a part of the weight at a time into 16 bits and leave the
product to cuBLAS (``expand``).
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
LEAST_CAPABILITY = (7, 5)  # Turing: below that, Triton compiles nothing
SCRATCH_BYTES = 64 << 20  # most that a weight multiplied out takes at a time
WORD_BYTES = 4
LEAST_WORDS = 16  # of a tile: what matrix units multiply at a time
MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Launch:
    """How a product is computed: which kernel, its grid, its tiles, and the bytes of weights that it reads."""

    kernel: Literal["gemv", "dot", "expand"]
    grid: tuple[int, int, int]
    blocks: tuple[int, ...]  # (N, words), (M, N, words) or (K,)
    warps: int
    stages: int
    bytes_read: int
    tiles: int = 0  # of words, that one program takes
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tile sizes of one generation of cards.

    ``gemv``: most rows of x, rows of the weight and words per program, warps. ``dot``: most rows of x, rows of the
    weight per program, warps, stages, and programs per multiprocessor below which K is divided between more.
    """

    gemv: tuple[tuple[int, int, int, int], ...]
    dot: tuple[tuple[int, int, int, int, float], ...]


# By compute capability, the highest that is not above the card's. ``gemv`` as measured on 9.0 (bench/gpu_kernels.py
# --tune, docs/gpu.md); ``dot`` not yet measured. Triton has no matrix units for Turing; cuBLAS has.
GEMV = ((1, 4, 128, 4), (2, 8, 128, 4), (4, 8, 128, 4))
DOT = ((16, 32, 4, 4, 4.0), (32, 64, 4, 4, 2.0), (64, 64, 4, 3, 2.0))
TILES: dict[tuple[int, int], Tiles] = {
    (7, 5): Tiles(gemv=(*GEMV, (8, 4, 128, 4)), dot=()),
    (8, 0): Tiles(gemv=GEMV, dot=DOT),
}


def launch(
    rows: int,
    shape: tuple[int, int],
    packing: Packing,
    scale_bytes: int,
    capability: tuple[int, int] = (7, 5),
    processors: int = 72,
    *,
    wide: bool = False,
) -> Launch:
    """The launch for x [rows, K] and a weight [N, K]. ``scale_bytes``: of one scale; ``wide``: x is fp32. Pure."""
    out, inputs = shape
    words = -(-inputs * packing.bits // 32)
    tiles = TILES[max(known for known in TILES if known <= capability)]
    read = out * (words * WORD_BYTES + packing.groups(inputs) * scale_bytes)
    gemv = next((tile for tile in (TILES[7, 5] if wide else tiles).gemv if rows <= tile[0]), None)
    if gemv is not None:
        _, block_n, block_w, warps = gemv
        return Launch("gemv", (-(-out // block_n), 1, 1), (block_n, block_w), warps, 2, read)
    dot = next((tile for tile in tiles.dot if rows <= tile[0]), None)
    if wide or dot is None:
        return Launch("expand", (out, -(-inputs // 1024), 1), (1024,), 4, 2, read)
    _, block_n, warps, stages, programs = dot
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    group_words = packing.group * packing.bits // 32 if packing.group < inputs else 128 * packing.bits // 32
    scaled = group_words < LEAST_WORDS
    block_w = 128 * packing.bits // 32
    while group_words % block_w and not scaled:
        block_w //= 2
    steps = -(-words // block_w)
    across = -(-out // block_n) * -(-rows // block_m)
    parts = min(max(int(programs * processors / across), 1), MOST_PARTS, steps)
    each = -(-steps // parts)
    grid = (-(-out // block_n), -(-rows // block_m), -(-steps // each))
    return Launch("dot", grid, (block_m, block_n, block_w), warps, stages, read, each, scaled)


@cache
def interpreted() -> bool:
    """Whether Triton's interpreter computes the kernels, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a card."""
    return (7, 5) if device.type == "cpu" else torch.cuda.get_device_capability(device)


@cache
def processors(device: torch.device) -> int:
    """The multiprocessors of a card."""
    return 72 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on that device: Triton is there, and the card is at least of Turing's generation."""
    if find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return interpreted()
    return device.type == "cuda" and capability(device) >= LEAST_CAPABILITY


def takes(x: Tensor, weight: Any, bias: Tensor | None = None) -> bool:
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
    card = x.device
    how = launch(
        len(flat), (out, inputs), weight.packing, weight.scale.element_size(), capability(card), processors(card),
        wide=x.dtype == torch.float32,
    )  # fmt: skip
    if how.kernel == "expand":
        y = _expanded(flat, weight, bias)
    else:
        y = flat.new_empty((len(flat), out))
        (_gemv if how.kernel == "gemv" else _dot)(how, flat, weight, bias, y)
    return y.view(*x.shape[:-1], out)


def _words(weight: Any) -> Tensor:
    values: Tensor = weight.values
    return values if weight.packing.words else values.view(torch.int32)


def _gemv(how: Launch, x: Tensor, weight: Any, bias: Tensor | None, y: Tensor) -> None:
    from outsize.kernels.cuda.triton_kernels import gemv_kernel

    packing, words = weight.packing, _words(weight)
    rows, inputs = x.shape
    width = words.shape[1]
    padded = 1 << (rows - 1).bit_length()
    planes = _spread(x, padded, packing.bits, width, torch.float32)
    block_n, block_w = how.blocks
    group_words = max(packing.group * packing.bits // 32, 1) if packing.group < inputs else width
    gemv_kernel[how.grid](
        planes, words, weight.scale, x if bias is None else bias, y, rows, len(words), width,
        weight.scale.shape[1], group_words, M=padded, BITS=packing.bits, SIGNED=not packing.words,
        HAS_BIAS=bias is not None, BLOCK_N=block_n, BLOCK_W=block_w, num_warps=how.warps,
    )  # fmt: skip


def _spread(x: Tensor, padded: int, bits: int, width: int, dtype: torch.dtype) -> Tensor:
    """x [rows, K] as [P, padded, W]: the inputs that the j-th integers of words multiply, for each j."""
    from outsize.kernels.cuda.triton_kernels import spread_kernel

    planes = torch.empty((32 // bits, padded, width), dtype=dtype, device=x.device)
    spread_kernel[(padded, -(-width // 256))](
        x, planes, len(x), padded, x.shape[1], width, BITS=bits, DIVIDED=dtype == torch.float32, BLOCK=256, num_warps=4
    )
    return planes


def _dot(how: Launch, x: Tensor, weight: Any, bias: Tensor | None, y: Tensor) -> None:
    from outsize.kernels.cuda.triton_kernels import dot_kernel, sum_kernel

    packing, words = weight.packing, _words(weight)
    (rows, inputs), (out, width) = x.shape, words.shape
    block_m, block_n, block_w = how.blocks
    parts = how.grid[2]
    to = y if parts == 1 else torch.empty((parts, rows, out), dtype=torch.float32, device=x.device)
    group_words = packing.group * packing.bits // 32 if packing.group < inputs else max(width, block_w)
    dot_kernel[how.grid](
        _spread(x, rows, packing.bits, width, x.dtype), words, weight.scale, x if bias is None else bias, to,
        rows, out, width, weight.scale.shape[1], group_words, how.tiles, BITS=packing.bits, SIGNED=not packing.words,
        HAS_BIAS=bias is not None and parts == 1, SCALED=how.scaled, PARTIAL=parts > 1, WIDE=interpreted(),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_W=block_w, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    if parts > 1:
        sum_kernel[(-(-rows * out // 1024),)](
            to, x if bias is None else bias, y, rows * out, out, HAS_BIAS=bias is not None, PARTS=parts, BLOCK=1024,
            num_warps=4,
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
