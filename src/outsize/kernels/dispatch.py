"""``linear`` by the fastest way there is: one table by device, format and rows, with plain torch behind every entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from outsize.kernels import reference
from outsize.kernels.cpu import grouped
from outsize.kernels.cpu import linear as cpu
from outsize.kernels.cpu.grouped import Describe, Part
from outsize.kernels.cuda import linear as cuda

Tensor = torch.Tensor
Linear = Callable[[Tensor, Any, Tensor | None], Tensor]
Multiply = Callable[[Tensor, Tensor, list[Part]], None]  # x, y and what of y is to be computed
ANY_NUMBER = 1 << 62


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to multiply: up to ``rows`` rows of x, where it ``takes`` these tensors (types, layouts, gradients)."""

    name: str
    rows: int
    takes: Callable[[Tensor, Any, Tensor | None], bool]
    linear: Linear


NATIVE = (Kernel("cpu native", cpu.MOST_ROWS, cpu.takes_native, cpu.native),)
CPU_PACKED = (
    Kernel("cpu packed", cpu.MOST_ROWS, cpu.takes_packed, cpu.packed),
    Kernel("cpu packed, by tiles", ANY_NUMBER, cpu.takes_packed, cpu.packed_by_tiles),
)
CPU_BF12 = (
    Kernel("cpu bf12", cpu.MOST_ROWS, cpu.takes_bf12, cpu.bf12),
    Kernel("cpu bf12, by tiles", ANY_NUMBER, cpu.takes_bf12, cpu.bf12_by_tiles),
)
CUDA_PACKED = (Kernel("triton packed", ANY_NUMBER, cuda.takes, cuda.linear),)  # which has a table of its own, by rows

# By the device of x and the form of the weight; the first that takes the tensors computes.
TABLE: dict[tuple[str, str], tuple[Kernel, ...]] = {
    ("cpu", "native"): NATIVE,
    ("cpu", "int8"): CPU_PACKED,
    ("cpu", "int4"): CPU_PACKED,
    ("cpu", "fp8"): CPU_PACKED,
    ("cpu", "mxfp4"): CPU_PACKED,
    ("cpu", "bf12"): CPU_BF12,
    ("cuda", "int8"): CUDA_PACKED,
    ("cuda", "int4"): CUDA_PACKED,
}


def linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """input [..., in] @ weight [out, in].T + bias [out], in the input's data type.

    ``weight``: plain, a PackedWeight or a Bf12Weight. On the CPU up to 16 rows go to the C kernels, which read the
    weights once and sum in fp32. bf16, fp16 and fp32 weights are multiplied as they are, 12-bit ones as what they
    stand for. For packed ones, activations are rounded in blocks of 128 inputs (64 or 32 where groups are smaller):
    to 16 bits, ``largest`` = 32639, or bf16 beside int4 to 12, 1919. Products are summed exactly within a block, so
    that with ``most`` the largest |x| of a block ``|error| <= sum over blocks of most / (2 * largest) * sum|w in
    block|``, and for fp32's rounding at most ``(blocks + 16) * 2**-23 * sum|x| * (|w| + |zero| * scale)``, zero
    being 2**(bits - 1) plus the zero point; the result is rounded to x's type. mxfp4 is multiplied so too, in blocks
    of 128 with ``largest`` = 32639 and zero = 0; fp8 with x as it is, and fp32's rounding alone, at most ``(blocks +
    24) * 2**-23 * sum|x| * |w|``. A row gives the same bits whatever rows are beside it. Activations that are not
    finite give NaN; those below 2**-100 count as zero.

    More rows of packed and 12-bit weights are multiplied by torch with tiles of at most 16 MiB, rounded to x's
    type. On GPUs see ``kernels.cuda``. Other devices, types and layouts, gradients, and OUTSIZE_KERNELS=torch: the
    reference.
    """
    if input.numel():
        rows = input.numel() // input.shape[-1]
        for kernel in TABLE.get((input.device.type, getattr(weight, "form", "native")), ()):
            if rows <= kernel.rows and kernel.takes(input, weight, bias):
                return kernel.linear(input, weight, bias)
    return reference.linear(input, weight, bias)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of x that are multiplied with the same weights: those that were routed to one expert.

    ``rows``: how many consecutive ones. ``weights``: matrices [out_i, in], each plain, a PackedWeight or a Bf12Weight,
    whose outputs stand beside each other. ``bias``: [sum of out_i], or None.
    """

    rows: int
    weights: tuple[Any, ...]
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GroupedKernel:
    """One way to multiply rows of many groups at once, up to ``rows`` of each.

    ``describes_with(x)`` gives what describes weights of its form, or None where x is not for it; a weight that it does
    not take is described as None. What is described goes to ``multiply`` in one call, with that of other forms whose
    ``multiply`` is the same.
    """

    name: str
    rows: int
    describes_with: Callable[[Tensor], Describe | None]
    multiply: Multiply


CPU_GROUPED = GroupedKernel("cpu packed, grouped", cpu.MOST_ROWS, grouped.packed_with, grouped.multiply)

# By the device of x and the form of the weight, as TABLE, which has what these do not take.
GROUPED: dict[tuple[str, str], GroupedKernel] = {
    ("cpu", "native"): GroupedKernel("cpu native, grouped", cpu.MOST_ROWS, grouped.native_with, grouped.multiply),
    ("cpu", "int8"): CPU_GROUPED,
    ("cpu", "int4"): CPU_GROUPED,
    ("cpu", "fp8"): CPU_GROUPED,
    ("cpu", "mxfp4"): CPU_GROUPED,
    ("cpu", "bf12"): GroupedKernel("cpu bf12, grouped", cpu.MOST_ROWS, grouped.bf12_with, grouped.multiply),
}


def grouped_linear(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """x [rows, in], of which each group takes the next ``Group.rows``, by that group's weights: [rows, out], x's type.

    A row's outputs have the bits that ``linear`` gives for the rows of its group, each weight and its share of the
    bias. On the CPU all groups of up to 16 rows are one call of the C kernels, unless gradients are enabled; the others
    are one ``linear`` after the other. Raises ValueError where the groups have other rows in all than x, or differ in
    their number of outputs.
    """
    rows = [group.rows for group in groups]
    if x.dim() != 2 or sum(rows) != len(x) or not rows or min(rows) < 0:
        raise ValueError(f"groups of {rows} rows do not fit x of {tuple(x.shape)}")
    with torch._C.DisableTorchFunctionSubclass():  # which would answer all that is asked of a weight in Python
        out = sum(weight.shape[0] for weight in groups[0].weights)
        calls = _divide(x, groups, out)
    y = x.new_empty((len(x), out))
    for multiply, parts in calls.items():
        if parts:
            multiply(x, y, parts)
    return y


def _divide(x: Tensor, groups: Sequence[Group], out: int) -> dict[Multiply, list[Part]]:
    """What each call multiplies. Raises ValueError where a group has not ``out`` outputs."""
    alone: list[Part] = []
    calls: dict[Multiply, list[Part]] = {_one_by_one: alone}
    ways: dict[str, tuple[int, Describe, list[Part]]] = {}
    first = 0
    for group in groups:
        rows, bias, column = group.rows, group.bias, 0
        for weight in group.weights:
            form = getattr(weight, "form", "native")
            way = ways.get(form)
            if way is None:
                way = ways[form] = _way(x, form, calls)
            most, describe, parts = way
            described = describe(weight, rows) if 0 < rows <= most else None
            if described is not None:
                parts.append((described, first, rows, column, bias))
            elif rows:
                alone.append((weight, first, rows, column, bias))
            column += weight.shape[0]
        if column != out or (bias is not None and bias.shape != (out,)):
            have = f"{column} outputs, bias {None if bias is None else tuple(bias.shape)}"
            raise ValueError(f"a group has {have}; the first has {out} outputs")
        first += rows
    return calls


def _way(x: Tensor, form: str, calls: dict[Multiply, list[Part]]) -> tuple[int, Describe, list[Part]]:
    """Most rows of a group, what describes a weight, and where its parts are put, for weights of that form."""
    kernel = None if torch.is_grad_enabled() or not x.numel() else GROUPED.get((x.device.type, form))
    describe = None if kernel is None else kernel.describes_with(x)
    if kernel is None or describe is None:
        return 0, lambda weight, rows: None, []
    return kernel.rows, describe, calls.setdefault(kernel.multiply, [])


def _one_by_one(x: Tensor, y: Tensor, parts: list[Part]) -> None:
    """Parts that are described by the weight itself."""
    for weight, first, rows, column, bias in parts:
        last, end = first + rows, column + weight.shape[0]
        y[first:last, column:end] = linear(x[first:last], weight, None if bias is None else bias[column:end])
