"""Weights made of random integers, and what they stand for in float64."""

from __future__ import annotations

import torch

from outsize.kernels import reference
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing

WORD = 1 << 31


def packed_weight(packing: Packing, out: int, inputs: int, seed: int = 0) -> PackedWeight:
    """Any bits are a weight."""
    made = torch.Generator().manual_seed(seed)

    def integers(shape: tuple[int, ...]) -> torch.Tensor:
        if packing.words:
            return torch.randint(-WORD, WORD, shape, generator=made, dtype=torch.int64).to(torch.int32)
        return torch.randint(-128, 128, shape, generator=made, dtype=torch.int64).to(torch.int8)

    shape = (out, inputs)
    scale = torch.rand(packing.scale_shape(shape), generator=made) * 0.01 + 0.001
    zero_point = integers(packing.zero_point_shape(shape)) if packing.zero_points else None
    return PackedWeight(
        integers(packing.values_shape(shape)), scale.to(getattr(torch, packing.scale)), zero_point, packing, shape
    )


def exact(weight: PackedWeight) -> torch.Tensor:
    """The weight [out, in] in float64."""
    scale = weight.scale.double()
    return reference.dequantise(
        weight.values, scale, weight.zero_point, weight.packing, tuple(weight.shape), torch.float64
    )


def shifted(weight: PackedWeight) -> torch.Tensor:
    """What lies between the stored, unsigned integers and the weight: |zero| * scale, [out, in] in float64."""
    least = torch.zeros_like(weight.values) if weight.packing.words else torch.full_like(weight.values, -128)
    return exact(PackedWeight(least, weight.scale, weight.zero_point, weight.packing, tuple(weight.shape))).abs()
