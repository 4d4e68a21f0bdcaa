"""Weights in a model: tensors to transformers; to the kernels, bytes as they are stored."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from outsize.errors import OutsizeError
from outsize.kernels import reference
from outsize.kernels.dispatch import linear
from outsize.models.formats import Packing

ATEN = torch.ops.aten
SAME = frozenset({ATEN.detach.default, ATEN.alias.default, ATEN.lift_fresh.default})
MOVES = frozenset({ATEN._to_copy.default, ATEN.clone.default})
# Ways to say the same: under inference_mode they arrive as they were said.
COMPOSED = frozenset({ATEN.to.device, ATEN.to.dtype, ATEN.to.dtype_layout, ATEN.to.other, ATEN.contiguous.default})
# What is asked of a tensor without its numbers, and what moves or casts it: by name, as methods and getters come.
ASKS = frozenset(
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous is_floating_point is_complex "
    "get_device is_inference is_shared data_ptr __len__ __hash__ detach requires_grad_".split()
)
MOVING = frozenset("to cpu cuda type_as clone contiguous float double half bfloat16".split())
CHANGES = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__".split())
VIEWS = frozenset({torch.Tensor.T, torch.Tensor.mT, torch.Tensor.H, torch.Tensor.mH, torch.Tensor.real})

Tensor = torch.Tensor


class NativeWeight(torch.Tensor):
    """A bf16, fp16 or fp32 weight [out, in], seen through a subclass (``weight.as_subclass(NativeWeight)``, no copy).

    ``functional.linear`` goes to the kernels; every other operation sees, and gives, plain tensors.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return linear(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class StoredWeight(torch.Tensor):
    """A weight [out, in] that is held in another form than numbers of its data type. It cannot be changed in place.

    ``functional.linear`` multiplies with it as it is. Any other operation works on ``whole()``, which takes that much
    more memory for as long as it lasts. ``form``: int8, int4, fp8, mxfp4 or bf12. ``keeps``: methods that leave it as
    it is.
    """

    form: str
    keeps: ClassVar[frozenset[str]] = ASKS

    @abstractmethod
    def whole(self) -> Tensor:
        """The weight as a plain tensor [out, in]."""

    def untyped_storage(self) -> NoReturn:
        """Raises OutsizeError: none of its bytes are those of a plain tensor (``save_pretrained`` asks this)."""
        raise OutsizeError(
            f"a weight held in {self.form} has no bytes of its own to save",
            remedy="copy the folder that it was loaded from",
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
        if name in cls.keeps or (name in ("__get__", "__set__") and of not in VIEWS):
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if (name in CHANGES or (name.endswith("_") and not name.endswith("__"))) and isinstance(args[0], cls):
            raise OutsizeError(f"a weight of {args[0].form} cannot be changed in place")
        # Not left to the dispatcher, which under inference_mode wants no views of tensors that were made outside of it.
        args, kwargs = tree_map_only(StoredWeight, lambda weight: weight.whole(), (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SAME:
            return args[0]  # it has no gradients to be taken out of
        moved = cls._moved(func, args, kwargs)
        if moved is not None:
            return moved
        args, kwargs = tree_map_only(StoredWeight, lambda weight: weight.whole(), (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def _moved(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation that moves or casts the weight in its form; None for all others."""
        return None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``, by the names that it gives its arguments."""
    if isinstance(weight, StoredWeight) and not isinstance(input, StoredWeight) and not isinstance(bias, StoredWeight):
        return linear(input, weight, bias)
    return functional.linear(*tree_map_only(StoredWeight, lambda stored: stored.whole(), (input, weight, bias)))


class PackedWeight(StoredWeight):
    """A quantised weight, held as ``values``, ``scale`` and ``zero_point``: plain tensors, as ``packing`` says.

    Its data type is the scales', or that which it is multiplied out to where scales keep theirs. Moved to a device, it
    stays packed, and cast, too.
    """

    values: Tensor  # type: ignore[assignment]  # see Packing.values_shape
    scale: Tensor  # [ceil(out / rows), groups]
    zero_point: Tensor | None  # int32 words [ceil(out * bits / 32), groups], or int8 [out, groups]
    packing: Packing
    described: tuple[int, int, tuple[Any, ...]] | None  # to the kernels, once they have asked
    job: bytes | None  # to the kernel of groups
    keeps: ClassVar[frozenset[str]] = ASKS | MOVING

    @staticmethod
    def __new__(
        cls,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        packing: Packing,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The weight of that shape, by default of the scales' data type. Nothing is copied."""
        made: Self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype or scale.dtype, device=values.device)
        made.values, made.scale, made.zero_point, made.packing = values, scale, zero_point, packing
        made.form, made.described, made.job = packing.format, None, None
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"PackedWeight({tuple(self.shape)}, {self.packing})"

    def whole(self) -> Tensor:
        """The weight multiplied out: [out, in] in its data type, on the same device."""
        return reference.multiplied_out(self, 0, self.shape[0], self.dtype)

    @classmethod
    def _moved(cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Copies of all three elsewhere; a data type may be the scales'."""
        if func in COMPOSED:
            return func.decompose(*args, **kwargs)
        if func not in MOVES:
            return None
        weight = args[0]
        where = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format")}
        dtype = kwargs.get("dtype") or weight.dtype
        cast = {"dtype": dtype} if weight.packing.casts_scales and dtype != weight.dtype else {}
        zero_point = None if weight.zero_point is None else func(weight.zero_point, **where)
        values, scale = func(weight.values, **where), func(weight.scale, **where, **cast)
        return PackedWeight(values, scale, zero_point, weight.packing, tuple(weight.shape), dtype)
