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
def spread_kernel(x, planes, rows, M, K, W, BITS: tl.constexpr, DIVIDED: tl.constexpr, BLOCK: tl.constexpr):
    """x [rows, K] as planes [P, M, W] in their own type, zero beyond the rows.

    Plane j has the inputs that the j-th integers of the words multiply. ``DIVIDED``: by the power of two by which the
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
        if DIVIDED:
            value = value * (1.0 / (1 << (BITS * (j if j < HALF else j - HALF))))
        tl.store(planes + (j * M + row) * W + word, value.to(planes.dtype.element_ty), mask=word < W)


@triton.jit
def gemv_kernel(
    planes, words, scale, bias, y, rows, N, W, groups, group_words,
    M: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y [rows, N] = x [rows, K] @ weight.T + bias: every word is read once and multiplied by all of up to M rows.

    ``planes``: x as ``spread_kernel`` writes it, [P, M, W] in fp32 and divided.
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
            xs = tl.load(planes + (j * M + m[:, None]) * W + w[None, :], mask=inside[None, :], other=0.0)
            part += value[None, :, :] * xs[:, None, :]
        s = tl.load(scale + row[:, None] * groups + (w // group_words)[None, :], mask=inside[None, :], other=0.0)
        total += part * s.to(tl.float32)[None, :, :]
    out = tl.sum(total, axis=2)  # [M, BLOCK_N]
    if HAS_BIAS:
        out += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[None, :]
    where = y + m[:, None] * N + n[None, :]
    tl.store(where, out.to(y.dtype.element_ty), mask=(m < rows)[:, None] & there[None, :])


@triton.jit
def integer_of(word, BITS: tl.constexpr, j: tl.constexpr, dtype: tl.constexpr):
    """The j-th integers of words in fp16 or bf16, by way of a number whose mantissa ends in their bits."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    integer = (word >> (BITS * j)) & ((1 << BITS) - 1)
    if dtype == tl.float16:  # 1024 + integer
        return (integer | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + HALF)
    elif BITS == 4:  # 128 + integer
        return (integer | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True) - (128.0 + HALF)
    else:
        return ((integer | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + HALF)).to(tl.bfloat16)


@triton.jit
def dot_kernel(
    planes, words, scale, bias, y, M, N, W, groups, group_words, tiles,
    BITS: tl.constexpr, SIGNED: tl.constexpr, HAS_BIAS: tl.constexpr, SCALED: tl.constexpr, PARTIAL: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y [M, N] = x [M, K] @ weight.T + bias, with matrix units on weights expanded in registers.

    A product over K may take its terms in any order, so no bits change places: the j-th integers of a tile of words are
    one operand, and the inputs that they multiply the other, for each j. A tile of words lies within one group, whose
    scale multiplies the sum; where groups are smaller, integers are ``SCALED`` before they are multiplied.
    ``planes``: x as ``spread_kernel`` writes it, [P, M, W]. ``tiles``: of words that one program takes.
    ``PARTIAL``: y is [programs, M, N] in fp32, for ``sum_kernel``. ``WIDE``: in fp32, for Triton's interpreter, whose
    ``dot`` takes bfloat16's bits for integers.
    """
    P: tl.constexpr = 32 // BITS
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    row = tl.where(n < N, n, 0).to(tl.int64)
    dtype = planes.dtype.element_ty
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(W, BLOCK_W))):
        w = tile * BLOCK_W + tl.arange(0, BLOCK_W)
        word = tl.load(words + row[:, None] * W + w[None, :], mask=(w < W)[None, :], other=0)
        if SIGNED:
            word = word ^ (-2139062144)
        if SCALED:
            s = tl.load(scale + row[:, None] * groups + (w // group_words)[None, :], mask=(w < W)[None, :], other=0.0)
        some = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for j in tl.static_range(P):
            a = tl.load(
                planes + (j * M + m[:, None]) * W + w[None, :], mask=(m < M)[:, None] & (w < W)[None, :], other=0.0
            )
            b = integer_of(word, BITS, j, dtype)
            if SCALED:
                b = (b.to(tl.float32) * s.to(tl.float32)).to(dtype)
            if WIDE:
                a, b = a.to(tl.float32), b.to(tl.float32)
            some = tl.dot(a, tl.trans(b), some)
        if SCALED:
            total += some
        else:
            s = tl.load(scale + row * groups + tile * BLOCK_W // group_words)
            total += some * s.to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    where = y + part.to(tl.int64) * M * N + m.to(tl.int64)[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if PARTIAL:
        tl.store(where, total, mask=inside)
    else:
        tl.store(where, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sum_kernel(partial, bias, y, count, N, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """y [count] = the sum of partial [PARTS, count] in its order, and bias [N]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(partial + part * count + i, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + i % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + i, total.to(y.dtype.element_ty), mask=inside)


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
