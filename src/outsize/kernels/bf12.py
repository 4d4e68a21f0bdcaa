"""bfloat16 weights that lie in RAM in 12 bits and a little each, without loss: made, multiplied with, and back."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from outsize.errors import OutsizeError
from outsize.kernels import bf12_reference
from outsize.kernels.cpu.library import Kernels, kernels
from outsize.kernels.dispatch import MOST_ROWS, TYPES
from outsize.kernels.packed import METHODS, SAME, VIEWS
from outsize.models.bf12_layout import EXCEPTION_LIMIT, LINE, MOST_INPUTS, bf12_bytes, bf12_parts, most_exceptions

# What is asked of a tensor without its numbers; what gives them elsewhere or in another type gives them expanded.
ASKED = METHODS - frozenset("to cpu cuda type_as clone contiguous float double half bfloat16".split())
TILE_BYTES = 16 << 20  # expanded at a time for many rows: with less, threads wait for each other more often

Tensor = torch.Tensor


class Bf12Weight(torch.Tensor):
    """A bfloat16 weight [out, in] on the CPU, held in ``stored`` as ``c/bf12.h`` describes. It cannot be changed.

    ``functional.linear`` multiplies with it as it is. Any other operation works on the weight ``expanded``, which takes
    that much more memory for as long as it lasts.
    """

    stored: Tensor  # uint8 [bf12_bytes(out, in, limit)], from a multiple of 64 bytes
    exceptions: int  # elements that lie in a list of their own
    limit: float
    described: tuple[int, int, int, int, int, int]  # to the kernels: out, in, and where the four parts lie

    @staticmethod
    def __new__(cls, shape: tuple[int, int], stored: Tensor, exceptions: int, limit: float) -> Bf12Weight:
        """Around what ``encode`` put into ``stored``. Nothing is copied."""
        made: Bf12Weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)
        made.stored, made.exceptions, made.limit = stored, exceptions, limit
        made.described = (*shape, *_addresses(stored, shape, limit))
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

    def untyped_storage(self) -> NoReturn:
        """Raises OutsizeError: none of its bytes are those of a bfloat16 tensor (``save_pretrained`` asks this)."""
        raise OutsizeError(
            "a weight held in 12 bits has no bytes of its own to save", remedy="copy the folder that it was loaded from"
        )

    storage = untyped_storage

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        name, of = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name in ASKED or (name in ("__get__", "__set__") and of not in VIEWS):
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        args, kwargs = tree_map_only(Bf12Weight, Bf12Weight.expanded, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in SAME:
            return args[0]  # it has no gradients to be taken out of
        args, kwargs = tree_map_only(Bf12Weight, Bf12Weight.expanded, (args, kwargs or {}))
        return func(*args, **kwargs)


def encode(weight: Tensor, limit: float = EXCEPTION_LIMIT, into: Tensor | None = None) -> Bf12Weight | None:
    """bfloat16 [out, in] in 12 bits an element; None where more than ``limit`` of them have exponents out of reach.

    ``into``: uint8 [at least ``bf12_bytes(out, in, limit)``], from a multiple of 64 bytes; kept, and rubbish where None
    is returned. None too for rows of more than 65536 elements. Uses torch's number of threads, and holds no lock of
    Python's.
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


def linear(x: Tensor, weight: Bf12Weight, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in].T + bias [out], in x's data type, summed in fp32.

    Up to 16 rows of bf16, fp16 or fp32 go to the C kernels, which read the weight once. More are multiplied by torch
    with tiles expanded one after another. OUTSIZE_KERNELS=torch, and all else that the kernels do not know: torch's
    ``linear`` with the weight expanded, bit for bit what it gives with the weight as it was.
    """
    build = kernels()
    grads = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    if build is None or grads or x.dtype not in TYPES or x.device.type != "cpu" or not x.numel():
        return functional.linear(x, weight.expanded(), bias)
    out, inputs = weight.described[:2]
    if x.shape[-1] != inputs or (bias is not None and bias.shape != (out,)):
        raise ValueError(f"{tuple(x.shape)} times a weight of {(out, inputs)}")
    x, bias = x.contiguous(), None if bias is None else bias.to(x.dtype).contiguous()
    rows = x.numel() // inputs
    if rows > MOST_ROWS:
        return _by_tiles(x.view(rows, inputs), weight, bias).view(*x.shape[:-1], out)
    return _by_kernel(build, x, rows, weight, bias)


def _by_kernel(build: Kernels, x: Tensor, rows: int, weight: Bf12Weight, bias: Tensor | None) -> Tensor:
    y = x.new_empty((*x.shape[:-1], weight.described[0]))
    status = build.bf12_linear(
        build.index, torch.get_num_threads(), rows, x.data_ptr(), TYPES[x.dtype], *weight.described,
        None if bias is None else bias.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {weight.described[1]}")
    return y


def _by_tiles(x: Tensor, weight: Bf12Weight, bias: Tensor | None) -> Tensor:
    out, inputs = weight.described[:2]
    step = max(16, TILE_BYTES // (2 * inputs) // 16 * 16)
    whole = torch.empty(min(step, out), inputs, dtype=torch.bfloat16)
    y = x.new_empty((len(x), out))
    wide = x if x.dtype == torch.bfloat16 else x.float()  # fp16 holds no bf16
    for first in range(0, out, step):
        last = min(first + step, out)
        tile = weight.expanded(first, last, whole[: last - first])
        part = None if bias is None else bias[first:last].to(wide.dtype)
        y[:, first:last] = functional.linear(wide, tile.to(wide.dtype), part)
    return y


def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """As torch names its arguments."""
    if isinstance(weight, Bf12Weight) and not isinstance(input, Bf12Weight) and not isinstance(bias, Bf12Weight):
        return linear(input, weight, bias)
    return functional.linear(*tree_map_only(Bf12Weight, Bf12Weight.expanded, (input, weight, bias)))


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
