"""Root mean square normalisation in one call instead of eight, where a module is found to compute just that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from outsize.kernels.cpu.library import kernels
from outsize.kernels.cpu.linear import TYPES
from outsize.kernels.replaced_forwards import ReplacedForwards

Tensor = torch.Tensor


def _rounded(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Llama, T5: the normalised numbers are rounded before the weight."""
    return weight * (x.float() * scale).to(x.dtype)


def _exact(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """OLMo 2: rounded once, after the weight."""
    return (weight.float() * (x.float() * scale)).to(x.dtype)


def _one_more(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Gemma: the weight is the difference from one."""
    return (x.float() * scale * (1.0 + weight.float())).to(x.dtype)


KINDS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (_rounded, _exact, _one_more)  # as in kernels.h


def reference(x: Tensor, weight: Tensor, eps: float, kind: int) -> Tensor:
    """``x / sqrt(mean(x * x) + eps)`` times ``weight`` [width] as ``KINDS[kind]`` has it, over the last dimension.

    In float32 but for its input and result (Zhang and Sennrich 2019, equation 4).
    """
    wide = x.float()
    return KINDS[kind](x, weight, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps))


def norm(x: Tensor, weight: Tensor, eps: float, kind: int) -> Tensor:
    """As ``reference``, by the kernel where there is one: summed in another order, so that a last bit may differ."""
    build = kernels()
    fits = x.is_cpu and weight.is_cpu and x.dtype == weight.dtype and x.dtype in TYPES and weight.is_contiguous()
    if build is None or not fits or not x.numel() or x.shape[-1:] != weight.shape or _has_gradient(x, weight):
        return reference(x, weight, eps, kind)
    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    build.norm(
        build.index, torch.get_num_threads(), x.numel() // width, width, x.data_ptr(), weight.data_ptr(), y.data_ptr(),
        TYPES[x.dtype], eps, kind,
    )  # fmt: skip
    return y


def kind_of(module: nn.Module) -> tuple[float, int] | None:
    """The epsilon and the kind of a module that is such a normalisation; None for all others.

    It is one if it has a single weight [width] and an epsilon, and its own ``forward`` gives the bits of a reference
    for numbers drawn at random, in bfloat16 and float32.
    """
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    names = list(module._parameters)
    if not isinstance(eps, float) or names != ["weight"] or module._buffers or next(module.children(), None):
        return None
    weight = module._parameters["weight"]
    if weight is None or weight.dim() != 1 or isinstance(module, nn.RMSNorm | nn.LayerNorm):
        return None  # torch's own are one operation already
    kinds = set(range(len(KINDS)))
    for dtype in (torch.bfloat16, torch.float32):
        kinds &= set(_kinds_in(module, len(weight), eps, dtype))
    return (eps, min(kinds)) if kinds else None


def _kinds_in(module: nn.Module, width: int, eps: float, dtype: torch.dtype) -> tuple[int, ...]:
    """The kinds whose reference gives the bits of a module's own forward pass."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn((3, width), generator=draw).to(dtype)
    probe = copy.copy(module)
    weight = torch.rand(width, generator=draw).add(0.5).to(dtype)
    probe.__dict__ = {**module.__dict__, "_parameters": {"weight": weight}}
    try:
        with torch.inference_mode():
            own = type(module).forward(probe, x)
            return tuple(kind for kind in range(len(KINDS)) if _same(own, reference(x, weight, eps, kind)))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # it takes something else, or does something else
        return ()


def _same(own: Any, ours: Tensor) -> bool:
    return isinstance(own, Tensor) and own.dtype == ours.dtype and own.shape == ours.shape and torch.equal(own, ours)


def replace_in(model: nn.Module) -> ReplacedForwards:
    """Lets the kernel compute all such normalisations of a model; what is returned restores it."""
    replaced = ReplacedForwards()
    known: dict[Any, tuple[float, int] | None] = {}
    for module in model.modules() if kernels() is not None else ():
        shape = tuple(getattr(module._parameters.get("weight"), "shape", ()))
        key = (type(module), shape, getattr(module, "variance_epsilon", getattr(module, "eps", None)))
        if key not in known:
            known[key] = kind_of(module)
        found = known[key]
        if found is not None:
            replaced.replace(module, partial(_forward, module, *found))
    return replaced


def _forward(module: nn.Module, eps: float, kind: int, *inputs: Any, **named: Any) -> Tensor:
    weight: Any = module._parameters["weight"]
    # Only x alone was compared: Mamba-2's norms compute something else where they are given a gate, too.
    if len(inputs) == 1 and not named and type(weight) is nn.Parameter and weight.dtype == inputs[0].dtype:
        return norm(inputs[0], weight, eps, kind)
    return type(module).forward(module, *inputs, **named)  # type: ignore[no-any-return]  # which knows what to do


def _has_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
