"""Matmuls with int4 and int8 weights on a GPU, on the bytes as they are stored; see ``models.formats``.

A weight [N, K] is int32 words [N, W], each with P = 32 / BITS integers along K, the lowest bits first, stored as
``integer + 2**(BITS - 1)``; scales [N, K / group]. Nothing is repacked. Integers become floats without a conversion
instruction: below an exponent of 2**23 the mantissa's bits are the integer's, and subtracting a constant that includes
the offset is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spread_kernel(x, planes, rows, K, W, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """x [rows, K] as fp32 planes [M, P, W], zero beyond the rows.

    Plane j has the inputs that the j-th integers of the words multiply. It is divided by the power of two by which the
    place of those integers in the word multiplies them.
    """
    P: tl.constexpr = 32 // BITS
    HALF: tl.constexpr = 5 if BITS == 4 else 2  # integers of a word that lie within a mantissa
    row, block = tl.program_id(0), tl.program_id(1)
    word = block * BLOCK + tl.arange(0, BLOCK)
    most = tl.where(row < rows, K, 0)
    for j in tl.static_range(P):
        k = word * P + j
        value = tl.load(x + row.to(tl.int64) * K + k, mask=k < most, other=0.0).to(tl.float32)
        place = j if j < HALF else j - HALF
        tl.store(planes + (row * P + j) * W + word, value * (1.0 / (1 << (BITS * place))), mask=word < W)


@triton.jit
def gemv_kernel(
    planes, words, scale, bias, y, rows, N, W, groups, group_words,
    M: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = x [rows, K] @ weight.T + bias: every word is read once and multiplied by all of up to M rows.

    ``planes``: x as ``spread_kernel`` writes it, [M, P, W].
    """
    P: tl.constexpr = 32 // BITS
    HALF: tl.constexpr = 5 if BITS == 4 else 2
    SHIFT: tl.constexpr = BITS * HALF
    MASK: tl.constexpr = (1 << BITS) - 1
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = n < N
    row = tl.where(there, n, 0).to(tl.int64)
    m = tl.arange(0, M)
    total = tl.zeros((M, BLOCK_N, BLOCK_W), tl.float32)
    for first in range(0, W, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)
        inside = w < W
        word = tl.load(words + row[:, None] * W + w[None, :], mask=inside[None, :], other=0)
        if SIGNED:
            word = word ^ (-2139062144)  # 0x80808080: two's complement as value + 128
        high = (word >> SHIFT) & ((1 << (32 - SHIFT)) - 1)
        part = tl.zeros((M, BLOCK_N, BLOCK_W), tl.float32)
        for j in tl.static_range(P):
            place = j if j < HALF else j - HALF
            source = word if j < HALF else high
            bits = (source & (MASK << (BITS * place))) | 0x4B000000
            value = bits.to(tl.float32, bitcast=True) - (8388608.0 + (1 << (BITS - 1 + BITS * place)))
            xs = tl.load(planes + (m[:, None] * P + j) * W + w[None, :], mask=inside[None, :], other=0.0)
            part += value[None, :, :] * xs[:, None, :]
        s = tl.load(scale + row[:, None] * groups + (w // group_words)[None, :], mask=inside[None, :], other=0.0)
        total += part * s.to(tl.float32)[None, :, :]
    out = tl.sum(total, axis=2)  # [M, BLOCK_N]
    if HAS_BIAS:
        out += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[None, :]
    where = y + m[:, None] * N + n[None, :]
    tl.store(where, out.to(y.dtype.element_ty), mask=(m < rows)[:, None] & there[None, :])


@triton.jit
def gemm_kernel(
    x, words, scale, bias, y, M, N, K, W, groups, group,
    BITS: tl.constexpr, SIGNED: tl.constexpr, HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y [M, N] = x [M, K] @ weight.T + bias for tens of rows, with matrix units on weights expanded in registers.

    ``WIDE``: in fp32, for Triton's interpreter, whose ``dot`` takes bfloat16's bits for integers.
    """
    P: tl.constexpr = 32 // BITS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.where(n < N, n, 0).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(x + m.to(tl.int64)[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        word = tl.load(words + row[None, :] * W + (k // P)[:, None], mask=(k < K)[:, None], other=0)  # [K, N]
        if SIGNED:
            word = word ^ (-2139062144)
        value = ((word >> ((k % P) * BITS)[:, None]) & ((1 << BITS) - 1)) - (1 << (BITS - 1))
        s = tl.load(scale + row[None, :] * groups + (k // group)[:, None], mask=(k < K)[:, None], other=0.0)
        b = (value.to(tl.float32) * s.to(tl.float32)).to(x.dtype.element_ty)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    where = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def expand_kernel(
    words, scale, out, K, W, groups, group,
    BITS: tl.constexpr, SIGNED: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The weight multiplied out: out [N, K] in its own type, rounded once."""
    P: tl.constexpr = 32 // BITS
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = k < K
    word = tl.load(words + row * W + k // P, mask=inside, other=0)
    if SIGNED:
        word = word ^ (-2139062144)
    value = ((word >> ((k % P) * BITS)) & ((1 << BITS) - 1)) - (1 << (BITS - 1))
    s = tl.load(scale + row * groups + k // group, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * K + k, (value.to(tl.float32) * s).to(out.dtype.element_ty), mask=inside)
