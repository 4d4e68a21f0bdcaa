"""Many small products in one call of the compiled library: each some rows of x by a weight, into some columns of y."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

import torch

from outsize.errors import OutsizeError
from outsize.kernels.cpu.library import kernels
from outsize.kernels.cpu.linear import SCRATCH_BYTES, TYPES, build_in_use, described_packed, in_type_of, knows_native

Tensor = torch.Tensor
Describe = Callable[[Any, int], Any]  # a weight, and how many rows it multiplies; None: not in such a call
Part = tuple[Any, int, int, int, Tensor | None]  # a weight described; first row, rows, first column; the whole bias

# The two halves of struct job in c/grouped.c: the weight (form, in, out, and what its form wants), and its place.
PLAIN, PACKED, TWELVE_BITS = Struct("3qPq64x"), Struct("3q5q3P4i"), Struct("3q4P3q24x")
PLACE = Struct("3qP")
PREPARED_BYTES, PADDING = 4, 1056  # of scratch for an activation, at most; such that a row is padded with, at most
BF12_GROUP = 128  # elements, as in c/bf12.h


def native_with(x: Tensor) -> Describe | None:
    """Describes plain weights that multiply rows of x; None where the library computes nothing with x."""
    build, dtype, inputs = kernels(), x.dtype, x.shape[1]
    if build is None or dtype not in TYPES:
        return None

    def describe(weight: Tensor, rows: int) -> bytes | None:
        out, width = weight.shape
        if width != inputs or not knows_native(build, dtype, weight, rows):
            return None
        return PLAIN.pack(0, inputs, out, weight.data_ptr(), TYPES[weight.dtype])

    return describe


def packed_with(x: Tensor) -> Describe | None:
    """The same of quantised weights, each of which is described once."""
    return _described_once(x, _packed_job)


def bf12_with(x: Tensor) -> Describe | None:
    """The same of 12-bit weights, each of which is described once."""
    return _described_once(x, _bf12_job)


def multiply(x: Tensor, y: Tensor, parts: list[Part]) -> None:
    """For each part ``y[rows, columns] = x[rows] @ weight.T + bias[columns]``. Parts of the same rows are neighbours.

    In several calls where the activations of all would take more than ``SCRATCH_BYTES``.
    """
    inputs = x.shape[1]
    most = SCRATCH_BYTES // (PREPARED_BYTES * (inputs + PADDING))  # rows
    if len(parts) > 1 and len(x) > most and sum(part[2] for part in parts) > most:
        half = len(parts) // 2
        multiply(x, y, parts[:half])
        multiply(x, y, parts[half:])
        return
    jobs: list[bytes] = []
    biases: list[Tensor] = []
    x = x.contiguous()
    for described, first, rows, column, bias in parts:
        address = 0
        if bias is not None:
            bias = in_type_of(x, bias)
            biases.append(bias)  # kept until the call is over
            address = bias.data_ptr() + column * bias.element_size()
        jobs += described, PLACE.pack(first, rows, column, address)
    build = build_in_use()
    status = build.grouped(
        build.index, torch.get_num_threads(), len(parts), b"".join(jobs), x.data_ptr(), TYPES[x.dtype], y.data_ptr(),
        y.shape[1],
    )  # fmt: skip
    if status:
        raise OutsizeError("no memory for rows of activations", need=f"{len(x)} x {inputs}")


def _described_once(x: Tensor, job_of: Callable[[Any], bytes]) -> Describe | None:
    inputs = x.shape[1]
    if kernels() is None or x.dtype not in TYPES:
        return None

    def describe(weight: Any, rows: int) -> bytes | None:
        if weight.job is None:
            weight.job = job_of(weight)
        return weight.job if weight.job and weight.described[1] == inputs else None

    return describe


def _packed_job(weight: Any) -> bytes:
    """Nothing for what the kernels do not know."""
    out, inputs, described = described_packed(weight)
    if not described:
        return b""
    values, kind, stride, group, block, scale, scale_type, zero, zero_kind = described
    shape = (inputs, out, group, -(-inputs // group), stride)
    return PACKED.pack(1, inputs, out, *shape, values, scale, zero or 0, kind, scale_type, zero_kind, block)


def _bf12_job(weight: Any) -> bytes:
    out, inputs, *addresses = weight.described
    return TWELVE_BITS.pack(2, inputs, out, *addresses, out, inputs, -(-inputs // BF12_GROUP))
