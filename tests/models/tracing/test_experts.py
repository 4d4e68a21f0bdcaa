"""How a fused weight is taken apart: every expert's matrices, as they lie in the checkpoint."""

import pytest
import torch
from torch import nn

from outsize.models.expert_slices import expert_tensors
from outsize.models.spec import StoredTensor
from outsize.models.tracing.experts import split_experts, sum_dtype
from outsize.models.tracing.recording import RecordingTensor, replay

SHAPE = (3, 4, 6)  # experts, out, in


def stored(name, shape, offset=0, strides=None):
    size = torch.Size(shape).numel() * 4
    return StoredTensor(name, "float32", tuple(shape), "f", offset, size, strides)


def recorded(name, shape=SHAPE[1:], **more):
    return RecordingTensor.of(stored(name, shape, **more), lambda a, b: a == b)


def values_of(tensor):
    """Numbers that tell every element of every tensor from all others."""
    first = sum(map(ord, tensor.name.partition("[")[0])) * 1000 + tensor.offset // 4
    return torch.arange(first, first + tensor.nbytes // 4, dtype=torch.float32).view(tensor.shape)


def check(fused, *, transposed=False):
    """The matrices of each expert beside each other are the expert's part of the whole."""
    whole = replay(fused.expression, values_of)
    parts = split_experts(fused.expression, tuple(fused.shape), transposed=transposed)
    for expert, matrices in zip(whole, parts, strict=True):
        found = torch.cat([replay(matrix, values_of) for matrix in matrices])
        assert torch.equal(found, expert.t() if transposed else expert)
    return parts


def test_stacked_and_concatenated():
    a, b = (torch.stack([recorded(f"{name}{i}") for i in range(3)]) for name in "ab")
    assert [len(matrices) for matrices in check(torch.cat([a, b], dim=1))] == [2, 2, 2]


@pytest.mark.parametrize("change", [torch.clone, lambda t: t.to(torch.bfloat16), lambda t: t.transpose(1, 2).clone()])
def test_changed_on_the_way(change):
    check(change(recorded("fused", SHAPE)))


def test_transposed_in_both_ways():
    check(recorded("fused", SHAPE), transposed=True)
    check(recorded("fused", SHAPE).permute(0, 2, 1).to(torch.bfloat16), transposed=False)
    check(recorded("fused", SHAPE).to(torch.float64), transposed=True)


def test_what_cannot_be_taken_apart():
    fused = recorded("fused", SHAPE)
    strided = recorded("fused", SHAPE, strides=(1, 3, 12))
    across = torch.cat([fused, fused], dim=0)
    mixed = torch.cat([fused, fused * 2], dim=1)
    for one in (strided, across, mixed, fused * 2, recorded("matrix")):
        assert split_experts(one.expression, tuple(one.shape), transposed=False) is None


def test_tensors_of_each_expert():
    apart = [stored(f"t{i}", (4, 6)) for i in range(6)]
    assert expert_tensors(apart, 3) == [tuple(apart[0:2]), tuple(apart[2:4]), tuple(apart[4:6])]
    ((first,), (second,), _) = expert_tensors([stored("all", SHAPE, offset=100)], 3)
    assert (first.offset, second.offset, second.shape, second.nbytes) == (100, 196, (4, 6), 96)


def test_sums_are_in_the_type_of_the_modules_own():
    half, single = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    made_here = type("Made", (nn.Module,), {})  # without a source
    assert sum_dtype(made_here(), half, single) == torch.bfloat16
