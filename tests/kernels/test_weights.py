"""A packed weight is a tensor to whoever asks, and stays packed for whoever multiplies or moves it."""

from __future__ import annotations

import copy

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from torch import nn
from torch.nn import functional

from outsize.errors import OutsizeError
from outsize.kernels import reference
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing

OUT, INPUTS = 13, 96


def make(
    bits: int = 4, group: int = 32, *, zero_points: bool = True, words: bool = True, dtype: torch.dtype = torch.bfloat16
) -> tuple[PackedWeight, torch.Tensor]:
    """A weight of random integers, packed by the package, and what it stands for, by hand."""
    generator = torch.Generator().manual_seed(bits + group)
    least, most = -(1 << (bits - 1)), 1 << (bits - 1)
    packing = Packing(bits, group, words, str(dtype).removeprefix("torch."), zero_points)
    groups = packing.groups(INPUTS)
    values = torch.randint(least, most, (OUT, INPUTS), dtype=torch.int8, generator=generator)
    zeros = torch.randint(least, most, (OUT, groups), dtype=torch.int8, generator=generator)
    scale = torch.rand((OUT, groups), generator=generator).to(dtype)
    each = torch.arange(INPUTS) // group
    weight = (values.to(dtype) - zeros.to(dtype)[:, each] * zero_points) * scale[:, each]
    zero_point = zeros if zero_points else None
    if words:
        values = pack_to_int32(values, bits)
        zero_point = pack_to_int32(zeros, bits, packed_dim=0) if zero_points else None
    return PackedWeight(values, scale, zero_point, packing, (OUT, INPUTS)), weight


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("bits", "words"), [(4, True), (8, True), (8, False)])
@pytest.mark.parametrize("group", [32, 40, 96])  # 40: the last group is cut short
@pytest.mark.parametrize("zero_points", [False, True])
def test_what_it_stands_for(bits: int, words: bool, group: int, zero_points: bool, dtype: torch.dtype) -> None:
    packed, weight = make(bits, group, zero_points=zero_points, words=words, dtype=dtype)
    assert torch.equal(packed.whole(), weight)
    x, bias = torch.rand(3, 2, INPUTS).to(dtype), torch.rand(OUT).to(dtype)
    assert torch.equal(functional.linear(x, packed, bias), functional.linear(x, weight, bias))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_as_the_package_packs_them(bits: int) -> None:
    values = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (5, 37), dtype=torch.int8)
    words = pack_to_int32(values, bits)
    assert torch.equal(reference.unpack(words, bits, 37), values)
    assert torch.equal(unpack_from_int32(words, bits, values.shape), values)


@pytest.mark.parametrize("words", [True, False])
def test_a_large_one_is_unpacked_in_pieces(words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, weight = make(8, words=words)
    monkeypatch.setattr(reference, "UNPACKED_BYTES", 1)
    for rows in (1, 20):
        x, bias = torch.rand(rows, INPUTS).bfloat16(), torch.rand(OUT).bfloat16()
        found = reference.linear(x, packed, bias)
        assert torch.allclose(found, functional.linear(x, weight, bias), rtol=0.02)


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_asked_of_it_and_what_leaves_it_packed(inference: bool) -> None:
    made, _ = make()
    with torch.inference_mode(inference):
        for packed in (made, make()[0]):  # from outside of inference_mode, and from inside
            parameter = nn.Parameter(packed, requires_grad=False)
            assert isinstance(parameter, PackedWeight)
            assert isinstance(parameter, nn.Parameter)
            assert (tuple(parameter.shape), parameter.dtype) == ((OUT, INPUTS), torch.bfloat16)
            assert (parameter.device.type, parameter.ndim, parameter.requires_grad) == ("cpu", 2, False)
            assert (len(parameter), parameter.numel(), parameter.is_floating_point()) == (OUT, OUT * INPUTS, True)
            moved = parameter.to(torch.device("cpu"), copy=True)
            assert isinstance(moved, PackedWeight)
            assert moved.values.data_ptr() != packed.values.data_ptr()
            assert torch.equal(moved.whole(), packed.whole())
            wide = parameter.float()
            assert isinstance(wide, PackedWeight)
            assert (wide.dtype, wide.scale.dtype, wide.values.dtype) == (torch.float32, torch.float32, torch.int32)
            assert isinstance(parameter.clone(), PackedWeight)
            assert parameter.to(torch.bfloat16) is parameter or isinstance(parameter.to(torch.bfloat16), PackedWeight)
            assert repr(parameter).startswith("PackedWeight((13, 96), Packing(bits=4")


@pytest.mark.parametrize("inference", [False, True])
def test_any_other_operation_sees_it_multiplied_out(inference: bool) -> None:
    packed, weight = make()
    with torch.inference_mode(inference):
        x = torch.rand(2, INPUTS).bfloat16()
        assert torch.equal(x @ packed.t(), x @ weight.t())
        assert torch.equal(x @ packed.T, x @ weight.T)
        assert torch.equal(packed[2:5], weight[2:5])
        assert torch.equal(packed + 1, weight + 1)
        assert torch.equal(functional.embedding(torch.tensor([3, 1]), packed), weight[[3, 1]])
        assert torch.equal(functional.linear(packed, weight), functional.linear(weight, weight))
        assert type(packed * 2) is torch.Tensor
    assert torch.equal(copy.deepcopy(packed), weight)


def test_it_is_not_changed_in_place_nor_saved() -> None:
    packed, _ = make()
    for change in (lambda: packed.mul_(2), lambda: packed.__setitem__(0, 0.0), lambda: packed.copy_(packed)):
        with pytest.raises(OutsizeError, match="int4 cannot be changed in place"):
            change()
    with pytest.raises(OutsizeError, match="copy the folder"):
        packed.untyped_storage()


def test_in_a_linear_layer() -> None:
    packed, weight = make()
    layer = nn.Linear(INPUTS, OUT, bias=False)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    x = torch.rand(2, INPUTS).bfloat16()
    assert torch.equal(layer(x), functional.linear(x, weight))
    assert torch.equal(functional.linear(input=x, weight=layer.weight, bias=None), layer(x))
    (held,) = layer.state_dict().values()
    assert torch.equal(held * 1, weight)
