"""How a fused weight is taken apart: every expert's matrices, as they lie in the checkpoint."""

import pytest
import torch
from torch import nn

from outsize.errors import UnsupportedModel
from outsize.models.expert_slices import expert_tensors
from outsize.models.files.packed_tensors import PackedTensor
from outsize.models.quantization import Quantisation, Scheme
from outsize.models.spec import StoredTensor
from outsize.models.tracing import module_specs
from outsize.models.tracing.experts import find_experts, split_experts, sum_dtype
from outsize.models.tracing.packed_weights import settle
from outsize.models.tracing.recording import Call, Packed, RecordingTensor, replay
from outsize.models.tracing.units import Slot, Weight

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
    without_source: dict[str, object] = {}
    exec("def forward(self, hidden, index, weights): ...", without_source)  # noqa: S102
    made = type("Made", (nn.Module,), {"forward": without_source["forward"]})
    assert sum_dtype(made(), half, single) == torch.bfloat16


class WideSum(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return torch.zeros_like(hidden_states, dtype=torch.float32)


class WeightsSum(nn.Module):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return torch.zeros_like(hidden_states, dtype=top_k_weights.dtype)


def test_some_modules_add_up_in_wider_types():
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert sum_dtype(WideSum(), half, half) == torch.float32
    assert sum_dtype(WeightsSum(), half, half.double()) == torch.float64


def weight_of(module, attribute, expression, experts=()):
    slot = Slot(module, attribute, buffer=False)
    return Weight(attribute, SHAPE, torch.float32, expression, (slot,), matmul=False, experts=experts)


class Marked(nn.Module):
    has_gate = has_bias = has_post_expert_norm = is_transposed = False

    def forward(self, hidden, index, weights):
        return hidden

    def _apply_gate(self, both):
        return both


def test_a_module_of_which_one_weight_cannot_be_taken_apart_stays_whole():
    module, fused = Marked(), recorded("fused", SHAPE)
    for other, apart in ((fused, True), (fused * 2, False)):
        both = (weight_of(module, "up_proj", fused.expression), weight_of(module, "down_proj", other.expression))
        found = find_experts(dict(enumerate(both)))
        assert [bool(weight.experts) for weight in found.values()] == [apart, apart]


def packed(name, shape, bits=4):
    words = (shape[0], shape[1] * bits // 32)
    values = StoredTensor(f"{name}_packed", "int32", words, "f", 0, 4 * words[0] * words[1])
    scale = StoredTensor(f"{name}_scale", "bfloat16", (shape[0], 1), "f", 0, 2 * shape[0])
    return Packed(PackedTensor(name, shape, values, scale))


def test_packed_experts_are_packed_and_shaped_alike():
    schemes = {"a": Scheme(4, None, True, False), "b": Scheme(8, None, True, False)}
    quantisation = Quantisation(schemes, ())
    a, b, longer = packed("a.weight", (4, 32)), packed("b.weight", (4, 32), 8), packed("a.weight", (8, 32))
    fused = Call(torch.ops.aten.stack.default, ([a, b],), {})
    made = weight_of(Marked(), "up_proj", fused, ((a,), (b,)))
    with pytest.raises(UnsupportedModel, match="are packed in several ways"):
        settle({0: made}, nn.Linear(1, 1), quantisation)
    with pytest.raises(UnsupportedModel, match="put together from packed weights, which"):
        settle({0: weight_of(nn.Linear(1, 1), "weight", fused)}, nn.Linear(1, 1), quantisation)
    alike = settle({0: weight_of(Marked(), "up_proj", fused, ((a,), (longer,)))}, nn.Linear(1, 1), quantisation)[0]
    with pytest.raises(UnsupportedModel, match="of several shapes"):
        module_specs._stored_shape(alike)
