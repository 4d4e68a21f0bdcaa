"""Tensors that record what is done to them, so that a load can be rehearsed without a byte being read.

A recording tensor has a shape and a data type and no data. Every operation on it runs on ``meta`` and is written down;
what comes out carries the expression that made it. Replaying an expression on real bytes gives the real tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from outsize.models.files.packed_tensors import PackedTensor
from outsize.models.formats import Packing
from outsize.models.spec import StoredTensor

# Operations that give their input back: left out of expressions, so that a plain tensor stays a plain source.
IDENTITIES = frozenset({"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})

# Changes of device and data type, in the forms in which they reach a dispatcher. Devices mean nothing here.
CASTS = frozenset({"aten._to_copy.default", "aten.to.device", "aten.to.dtype", "aten.to.dtype_layout"})

# What is done to a weight in place is recorded as what makes a new one: bytes of a checkpoint are never written to.
IN_PLACE: dict[Any, Any] = {torch.ops.aten.div_.Tensor: torch.div}


@dataclass(frozen=True, slots=True)
class Source:
    """A leaf: the tensor of a file, row-major in memory even where it is stored as a strided view."""

    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of torch on expressions and constants; ``index`` picks one of several results."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(hash=False)
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """A leaf of several tensors: one quantised weight [out, in]; ``packing`` is settled once its module is known.

    ``dtype``: the data type that the weight is cast to, if it is. What that does to its scales, the packing says.
    """

    tensor: PackedTensor
    packing: Packing | None = None
    dtype: torch.dtype | None = None


Expression = Source | Call | Packed
# Makes a weight of its values, scales and zero points, of a shape and data type, without a copy: the floor above can.
Pack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Packing, tuple[int, ...], torch.dtype], torch.Tensor]


def sources(expression: Expression) -> Iterator[StoredTensor]:
    """The stored tensors that an expression reads, in order; one that is read twice comes twice."""
    if isinstance(expression, Source):
        yield expression.tensor
        return
    if isinstance(expression, Packed):
        yield from expression.tensor.tensors
        return
    for leaf in tree_leaves((expression.args, expression.kwargs), is_leaf=_is_expression):
        if _is_expression(leaf):
            yield from sources(leaf)


def copies(expression: Expression) -> bool:
    """Whether replaying makes new memory (a cast, a concatenation, a strided view laid out) instead of a view."""
    if isinstance(expression, Source):
        return expression.tensor.strides is not None
    if isinstance(expression, Packed):
        cast = expression.dtype is not None and (expression.packing is None or expression.packing.casts_scales)
        return cast or any(part.strides is not None for part in expression.tensor.tensors)
    inner = (leaf for leaf in tree_leaves((expression.args, expression.kwargs), is_leaf=_is_expression))
    return not expression.op.is_view or any(copies(leaf) for leaf in inner if _is_expression(leaf))


def is_whole(expression: Expression) -> bool:
    """Whether it is one weight of the checkpoint, as it is or in another data type: what can be packed, or is."""
    if isinstance(expression, Call) and expression.op is torch.ops.aten._to_copy.default:
        expression = expression.args[0]
    return isinstance(expression, Source | Packed)


def replay(
    expression: Expression, fetch: Callable[[StoredTensor], torch.Tensor], pack: Pack | None = None
) -> torch.Tensor:
    """The tensor that an expression stands for, over the sources that ``fetch`` gives; ``pack`` makes packed ones.

    ``fetch`` may give strided views: they are laid out, because all that is done to a source was recorded as if it were
    row-major. A cast does that on its way, so that there is one copy.
    """
    if isinstance(expression, Source):
        return fetch(expression.tensor).contiguous()
    if isinstance(expression, Packed):
        assert pack is not None, "whoever replays a packed weight can make one"
        assert expression.packing is not None, "the weight is settled"
        values, scale, *zero_point = (fetch(tensor).contiguous() for tensor in expression.tensor.tensors)
        dtype = expression.dtype or getattr(torch, expression.tensor.dtype)
        scale = scale.to(dtype) if expression.packing.casts_scales else scale
        return pack(values, scale, next(iter(zero_point), None), expression.packing, expression.tensor.shape, dtype)

    if expression.op is torch.ops.aten._to_copy.default and isinstance(expression.args[0], Source):
        return fetch(expression.args[0].tensor).to(**expression.kwargs, memory_format=torch.contiguous_format)

    def realise(leaf: Any) -> Any:
        return replay(leaf, fetch, pack) if _is_expression(leaf) else leaf

    args, kwargs = tree_map(realise, (expression.args, expression.kwargs), is_leaf=_is_expression)
    result = expression.op(*args, **kwargs)
    return result if expression.index is None else result[expression.index]  # type: ignore[no-any-return]


class RecordingTensor(torch.Tensor):
    """A tensor of a given shape and data type, on no device, that carries the expression which made it.

    ``same(a, b)`` answers whether two stored tensors hold equal bytes; tying asks that of a checkpoint which has both.
    """

    shadow: torch.Tensor
    expression: Expression
    same: Callable[[StoredTensor, StoredTensor], bool]

    @staticmethod
    def __new__(
        cls, shadow: torch.Tensor, expression: Expression, same: Callable[[StoredTensor, StoredTensor], bool]
    ) -> RecordingTensor:
        """A tensor like ``shadow``, a plain one on ``meta``."""
        made: RecordingTensor = torch.Tensor._make_wrapper_subclass(
            cls, shadow.shape, strides=shadow.stride(), dtype=shadow.dtype, device=torch.device("cpu")
        )
        made.shadow, made.expression, made.same = shadow, expression, same
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"RecordingTensor({self.expression!r})"

    @classmethod
    def of(
        cls, stored: StoredTensor | PackedTensor, same: Callable[[StoredTensor, StoredTensor], bool]
    ) -> RecordingTensor:
        """A recording tensor for one stored tensor, or for the several of a packed weight, as if it were not packed.

        mxfp4 stores experts [experts, out, in]; the models that have some want them [experts, in, out].
        """
        shadow = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype), device="meta")
        if not isinstance(stored, PackedTensor):
            return cls(shadow, Source(stored), same)
        made = cls(shadow, Packed(stored, stored.packing), same)
        turned = len(stored.shape) == 3 and stored.packing is not None and stored.packing.kind == "mxfp4"
        return made.transpose(1, 2) if turned else made  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, RecordingTensor))
        if func is torch.ops.aten.equal.default:
            return _equal(args[0], args[1])
        if func in IN_PLACE and isinstance(args[0], RecordingTensor):
            args[0].expression = IN_PLACE[func](*args, **kwargs).expression
            return args[0]
        shadows, named = tree_map(_shadow, (args, kwargs))
        result = func(*shadows, **named)
        if str(func) in IDENTITIES or (str(func) in CASTS and result.dtype == first.dtype):
            return cls(result, first.expression, first.same)
        if str(func) in CASTS:
            cast = Call(torch.ops.aten._to_copy.default, (first.expression,), {"dtype": result.dtype})
            return cls(result, cast, first.same)
        noted_args, noted_kwargs = tree_map(_noted, (args, kwargs))
        if isinstance(result, torch.Tensor):
            return cls(result, Call(func, noted_args, noted_kwargs), first.same)
        if isinstance(result, list | tuple):
            return type(result)(
                cls(one, Call(func, noted_args, noted_kwargs, index), first.same) for index, one in enumerate(result)
            )
        return result


def _is_expression(leaf: Any) -> bool:
    return isinstance(leaf, Source | Call | Packed)


def _noted(leaf: Any) -> Any:
    return leaf.expression if isinstance(leaf, RecordingTensor) else leaf


def _shadow(leaf: Any) -> Any:
    if isinstance(leaf, RecordingTensor):
        return leaf.shadow
    if isinstance(leaf, torch.Tensor) and leaf.dim():  # made while weights are initialised, which is thrown away
        return leaf.to("meta")
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _equal(a: Any, b: Any) -> bool:
    """Whether two recorded tensors are equal: the same operations, or none, on equal bytes."""
    if not (isinstance(a, RecordingTensor) and isinstance(b, RecordingTensor)) or a.dtype != b.dtype:
        return False
    left, right = list(sources(a.expression)), list(sources(b.expression))
    if len(left) != 1 or len(right) != 1:
        return False
    return a.shape == b.shape and (left[0] == right[0] or a.same(left[0], right[0]))
