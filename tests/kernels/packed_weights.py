"""Weights made of random integers, what they stand for in float64, and how far products may be from the truth."""

from __future__ import annotations

import torch
from torch.nn import functional

from outsize.kernels import reference
from outsize.kernels.cpu.linear import block_of, largest
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing

WORD = 1 << 31


def packed_weight(packing: Packing, out: int, inputs: int, seed: int = 0) -> PackedWeight:
    """Any bits are a weight, but for those that say that there is no number."""
    made = torch.Generator().manual_seed(seed)

    def integers(shape: tuple[int, ...]) -> torch.Tensor:
        if packing.words:
            return torch.randint(-WORD, WORD, shape, generator=made, dtype=torch.int64).to(torch.int32)
        if packing.kind != "int":
            return torch.randint(0, 256, shape, generator=made, dtype=torch.int64).to(torch.uint8)
        return torch.randint(-128, 128, shape, generator=made, dtype=torch.int64).to(torch.int8)

    shape = (out, inputs)
    if packing.kind == "mxfp4":
        exponents = 115 + integers(packing.scale_shape(shape)) % 8
        return PackedWeight(integers(packing.values_shape(shape)), exponents, None, packing, shape, torch.bfloat16)
    scale = torch.rand(packing.scale_shape(shape), generator=made) * 0.01 + 0.001
    if packing.kind == "fp8":
        raw = integers(shape)
        values = torch.where(raw & 0x7F == 0x7F, raw ^ 1, raw).view(torch.float8_e4m3fn)
        return PackedWeight(values, scale.to(getattr(torch, packing.scale)), None, packing, shape, torch.bfloat16)
    zero_point = integers(packing.zero_point_shape(shape)) if packing.zero_points else None
    return PackedWeight(
        integers(packing.values_shape(shape)), scale.to(getattr(torch, packing.scale)), zero_point, packing, shape
    )


def exact(weight: PackedWeight) -> torch.Tensor:
    """The weight [out, in] in float64."""
    if weight.packing.kind != "int":
        return reference.multiplied_out(weight, 0, weight.shape[0], torch.float64)
    scale = weight.scale.double()
    return reference.dequantise(
        weight.values, scale, weight.zero_point, weight.packing, tuple(weight.shape), torch.float64
    )


def shifted(weight: PackedWeight) -> torch.Tensor:
    """What lies between the stored, unsigned integers and the weight: |zero| * scale, [out, in] in float64."""
    if weight.packing.kind != "int":
        return torch.zeros(weight.shape, dtype=torch.float64)
    least = torch.zeros_like(weight.values) if weight.packing.words else torch.full_like(weight.values, -128)
    return exact(PackedWeight(least, weight.scale, weight.zero_point, weight.packing, tuple(weight.shape))).abs()


def rounding(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance between neighbours in ``dtype``, at least that between its smallest numbers."""
    return y.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def bound(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """The error that ``linear`` states for packed weights, before its result is rounded."""
    packing, inputs = weight.packing, x.shape[-1]
    if packing.kind == "fp8":
        return (-(-inputs // 128) + 24) * 2.0**-23 * (x.double().abs() @ exact(weight).abs().T)
    block = 128 if packing.kind == "mxfp4" else block_of(packing.group, inputs)
    whole, shifts = exact(weight).abs(), shifted(weight)
    padding = (0, -inputs % block)
    most = functional.pad(x.double().abs(), padding).unflatten(-1, (-1, block)).amax(-1)  # [rows, blocks]
    sums = functional.pad(whole, padding).unflatten(-1, (-1, block)).sum(-1)  # [out, blocks]
    return most @ sums.T / (2 * largest(packing, x.dtype)) + (most.shape[-1] + 16) * 2.0**-23 * (
        x.double().abs() @ (whole + shifts).T
    )
