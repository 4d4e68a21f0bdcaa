"""A quantised weight in a model: a tensor to transformers, integers and scales to the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from outsize.errors import OutsizeError
from outsize.kernels import dispatch, reference
from outsize.models.formats import Packing

ATEN = torch.ops.aten
SAME = frozenset({ATEN.detach.default, ATEN.alias.default, ATEN.lift_fresh.default})
MOVES = frozenset({ATEN._to_copy.default, ATEN.clone.default})
# Ways to say the same: under inference_mode they arrive as they were said.
COMPOSED = frozenset({ATEN.to.device, ATEN.to.dtype, ATEN.to.dtype_layout, ATEN.to.other, ATEN.contiguous.default})
# What is asked of a tensor without its numbers, and what leaves it packed: by name, as methods and getters come.
METHODS = frozenset(
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex "
    "get_device is_inference is_shared data_ptr __len__ __hash__ detach requires_grad_ to cpu cuda type_as clone "
    "contiguous float double half bfloat16".split()
)
CHANGES = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__".split())
VIEWS = frozenset({torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH, torch.Tensor.real})

Change = Callable[[torch.Tensor], torch.Tensor]


class PackedWeight(torch.Tensor):
    """A weight [out, in] in the scales' data type, held as ``values``, ``scale`` and ``zero_point``: plain tensors.

    ``functional.linear`` multiplies with it as it is. Moved to a device, it stays packed; cast, its scales are. Any
    other operation works on the weight multiplied out, which takes that much more memory for as long as it lasts.
    """

    values: torch.Tensor  # type: ignore[assignment]  # int32 words [out, ceil(in * bits / 32)], or int8 [out, in]
    scale: torch.Tensor  # [out, groups]
    zero_point: torch.Tensor | None  # int32 words [ceil(out * bits / 32), groups], or int8 [out, groups]
    packing: Packing
    described: tuple[int, int, tuple[Any, ...]] | None  # to the kernels, once they have asked

    @staticmethod
    def __new__(
        cls,
        values: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        packing: Packing,
        shape: tuple[int, ...],
    ) -> PackedWeight:
        """The weight of that shape. Nothing is copied."""
        made: PackedWeight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=scale.dtype, device=values.device)
        made.values, made.scale, made.zero_point, made.packing = values, scale, zero_point, packing
        made.described = None
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"PackedWeight({tuple(self.shape)}, {self.packing})"

    def dequantised(self) -> torch.Tensor:
        """The weight multiplied out: [out, in] in the scales' data type, on the same device."""
        return reference.dequantise(
            self.values, self.scale, self.zero_point, self.packing, tuple(self.shape), self.scale.dtype
        )

    def untyped_storage(self) -> NoReturn:
        """Raises OutsizeError: there are several, and none of them holds the weight (``save_pretrained`` asks this)."""
        raise OutsizeError(
            f"a weight of {self.packing.format} has no bytes of its own to save",
            remedy="copy the folder that it was loaded from",
        )

    storage = untyped_storage

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        name, of = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name in METHODS or (name in ("__get__", "__set__") and of not in VIEWS):
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if (name in CHANGES or (name.endswith("_") and not name.endswith("__"))) and isinstance(args[0], cls):
            raise OutsizeError(f"a weight of {args[0].packing.format} cannot be changed in place")
        # Not left to the dispatcher, which under inference_mode wants no views of tensors that were made outside of it.
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.dequantised, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SAME:
            return args[0]  # it has no gradients to be taken out of
        if func in MOVES:
            return args[0]._moved(func, kwargs)
        if func in COMPOSED:
            return func.decompose(*args, **kwargs)
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.dequantised, (args, kwargs))
        return func(*args, **kwargs)

    def _moved(self, func: Any, kwargs: dict[str, Any]) -> PackedWeight:
        """Copies of all three elsewhere; a data type is the scales'."""
        where = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format")}
        dtype = {} if kwargs.get("dtype") is None else {"dtype": kwargs["dtype"]}
        return self._like(lambda tensor: func(tensor, **where), lambda scale: func(scale, **where, **dtype))

    def _like(self, change: Change, change_scale: Change | None = None) -> PackedWeight:
        zero_point = None if self.zero_point is None else change(self.zero_point)
        scale = (change_scale or change)(self.scale)
        return PackedWeight(change(self.values), scale, zero_point, self.packing, tuple(self.shape))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``functional.linear``, by the names that it gives its arguments."""
    if isinstance(weight, PackedWeight) and not isinstance(input, PackedWeight) and not isinstance(bias, PackedWeight):
        return dispatch.linear(input, weight, bias)
    return functional.linear(*tree_map_only(PackedWeight, PackedWeight.dequantised, (input, weight, bias)))
