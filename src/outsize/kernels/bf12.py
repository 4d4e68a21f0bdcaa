"""bfloat16 weights that lie in RAM in 12 bits and a little each, without loss: made, and back."""

from __future__ import annotations

from typing import Self

import torch

from outsize.errors import OutsizeError
from outsize.kernels import bf12_reference
from outsize.kernels.cpu.library import kernels
from outsize.kernels.weights import StoredWeight
from outsize.models.bf12_layout import EXCEPTION_LIMIT, LINE, MOST_INPUTS, bf12_bytes, bf12_parts, most_exceptions

Tensor = torch.Tensor


class Bf12Weight(StoredWeight):
    """A bfloat16 weight [out, in] on the CPU, held in ``stored`` as ``c/bf12.h`` describes."""

    stored: Tensor  # uint8 [bf12_bytes(out, in, limit)], from a multiple of 64 bytes
    exceptions: int  # elements that lie in a list of their own
    limit: float
    described: tuple[int, int, int, int, int, int]  # to the kernels: out, in, and where the four parts lie
    job: bytes | None  # to the kernel of groups, once it has asked

    @staticmethod
    def __new__(cls, shape: tuple[int, int], stored: Tensor, exceptions: int, limit: float) -> Self:
        """Around what ``encode`` put into ``stored``. Nothing is copied."""
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)
        made.form, made.stored, made.exceptions, made.limit = "bf12", stored, exceptions, limit
        made.described, made.job = (*shape, *_addresses(stored, shape, limit)), None
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"Bf12Weight({tuple(self.shape)}, exceptions={self.exceptions})"

    def expanded(self, first: int = 0, last: int | None = None, into: Tensor | None = None) -> Tensor:
        """Rows first .. last as they were: bfloat16 [last - first, in], in ``into`` if that is given (contiguous)."""
        out, inputs, *addresses = self.described
        last = out if last is None else last
        if not 0 <= first <= last <= out:
            raise ValueError(f"rows {first} to {last} of {out}")
        if into is None:
            into = torch.empty(last - first, inputs, dtype=torch.bfloat16)
        if into.shape != (last - first, inputs) or into.dtype != torch.bfloat16 or not into.is_contiguous():
            raise ValueError("rows are expanded into a contiguous bfloat16 tensor of their shape")
        build = kernels()
        if build is None:
            bf12_reference.expand(bf12_reference.parts_of(self.stored, out, inputs, self.limit), first, last, into)
        else:
            threads = torch.get_num_threads()
            build.bf12_expand(build.index, threads, first, last, into.data_ptr(), out, inputs, *addresses)
        return into

    def whole(self) -> Tensor:
        """The weight as it was: bfloat16 [out, in]."""
        return self.expanded()


def encode(weight: Tensor, limit: float = EXCEPTION_LIMIT, into: Tensor | None = None) -> Bf12Weight | None:
    """bfloat16 [out, in] in 12 bits an element; None where more than ``limit`` of them have exponents out of reach.

    ``into``: uint8 [at least ``bf12_bytes(out, in, limit)``], from a multiple of 64 bytes; kept, and undefined where
    None is returned. None too for rows of more than 65536 elements. Uses torch's number of threads, and holds no lock
    of Python's.
    """
    if weight.dtype != torch.bfloat16 or weight.dim() != 2 or weight.device.type != "cpu" or weight.stride(1) != 1:
        raise ValueError("bf12 is made of bfloat16 matrices on the CPU whose rows are contiguous")
    out, inputs = weight.shape
    if inputs > MOST_INPUTS:
        return None
    stored = _room(bf12_bytes(out, inputs, limit), into)
    most, build = most_exceptions(out, inputs, limit), kernels()
    if build is None:
        found = bf12_reference.encode(weight.detach(), bf12_reference.parts_of(stored, out, inputs, limit), most)
    else:
        found = build.bf12_encode(
            build.index, torch.get_num_threads(), weight.data_ptr(), weight.stride(0), most, out, inputs,
            *_addresses(stored, (out, inputs), limit),
        )  # fmt: skip
    if found < -1:
        raise OutsizeError("no memory to list the exceptions of a weight", need=f"{4 * most} bytes a thread")
    return Bf12Weight((out, inputs), stored, found, limit) if found >= 0 else None


def _room(nbytes: int, into: Tensor | None) -> Tensor:
    if into is None:
        into = torch.empty(nbytes + LINE, dtype=torch.uint8)
        return into[-into.data_ptr() % LINE :][:nbytes]
    if into.dtype != torch.uint8 or into.dim() != 1 or not into.is_contiguous() or len(into) < nbytes:
        raise ValueError(f"this weight takes {nbytes} bytes of uint8")
    if into.data_ptr() % LINE:
        raise ValueError("a weight in 12 bits begins at a multiple of 64 bytes")
    return into


def _addresses(stored: Tensor, shape: tuple[int, int], limit: float) -> tuple[int, int, int, int]:
    body = stored.data_ptr()
    sizes = bf12_parts(*shape, limit)
    return body, body + sizes[0], body + sum(sizes[:2]), body + sum(sizes[:3])
