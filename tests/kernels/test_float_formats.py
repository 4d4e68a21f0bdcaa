"""fp8 and mxfp4 weights: what they stand for is what transformers makes of them."""

from __future__ import annotations

import pytest
import torch
from published_formats import fp8, mxfp4
from torch.nn import functional
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from outsize.kernels import reference
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import MXFP4, Packing

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def fp8_weight(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype, scale: torch.dtype = torch.float32
) -> PackedWeight:
    parts = fp8(block, scale)(weight)
    packing = Packing(8, block[1], words=False, scale=str(scale).removeprefix("torch."), kind="fp8", rows=block[0])
    return PackedWeight(parts[""], parts["_scale_inv"], None, packing, tuple(weight.shape), dtype)


def mxfp4_weight(weight: torch.Tensor, dtype: torch.dtype) -> PackedWeight:
    parts = mxfp4(weight)
    return PackedWeight(parts["_blocks"], parts["_scales"], None, MXFP4, tuple(weight.shape), dtype)


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "block"), [((24, 96), (8, 32)), ((16, 64), (16, 64)), ((6, 6), (1, 2))])
def test_fp8(shape: tuple[int, int], block: tuple[int, int], scale: torch.dtype, dtype: torch.dtype) -> None:
    packed = fp8_weight(torch.randn(shape), block, dtype, scale)
    true = Fp8Dequantize(None)._dequantize_one(packed.values, packed.scale, dtype)
    assert packed.dtype == dtype
    assert torch.equal(packed.whole(), true)
    x, bias = torch.randn(3, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
    assert torch.equal(functional.linear(x, packed, bias), functional.linear(x, true, bias))


def test_blocks_that_are_cut_short() -> None:
    packed = fp8_weight(torch.randn(21, 70), (8, 32), torch.float32)
    scale = packed.scale.repeat_interleave(8, 0)[:21].repeat_interleave(32, 1)[:, :70]
    assert torch.equal(packed.whole(), packed.values.float() * scale)


def test_every_byte_of_fp8() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)
    packing = Packing(8, 128, words=False, scale="float32", kind="fp8", rows=128)
    whole = PackedWeight(values, torch.tensor([[0.5]]), None, packing, (2, 128), torch.float32).whole()
    assert torch.equal(whole, values.float() * 0.5) or whole.isnan().sum() == 2
    assert whole[:, -1].isnan().all()
    assert whole[0, 126] == 224.0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_mxfp4(dtype: torch.dtype) -> None:
    packed = mxfp4_weight(torch.randn(10, 96), dtype)
    true = convert_moe_packed_tensors(packed.values[None], packed.scale[None], dtype=dtype)[0].T.contiguous()
    assert torch.equal(packed.whole(), true)
    x = torch.randn(3, 96).to(dtype)
    assert torch.equal(functional.linear(x, packed), functional.linear(x, true))


def test_every_exponent_of_mxfp4() -> None:
    scale = torch.arange(256, dtype=torch.uint8).view(256, 1)
    powers = reference.powers(scale).flatten().double()
    assert torch.equal(powers[:255], 2.0 ** (torch.arange(255).double() - 127))
    assert powers[255].isinf()
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, 16, 16).contiguous()
    weight = PackedWeight(blocks, scale.expand(256, 16).contiguous(), None, MXFP4, (256, 512), torch.bfloat16)
    true = convert_moe_packed_tensors(blocks[None], weight.scale[None])[0].T
    assert torch.equal(weight.whole()[:255], true[:255])
    assert not weight.whole()[255].isfinite().any()  # the format's NaN, which transformers takes for 2 ** 128


@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_a_large_one_is_multiplied_out_in_pieces(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(29, 64)
    packed = fp8_weight(weight, (12, 32), torch.float32) if form == "fp8" else mxfp4_weight(weight, torch.float32)
    x, bias = torch.randn(3, 64), torch.randn(29)
    true = functional.linear(x, packed.whole(), bias)
    monkeypatch.setattr(reference, "UNPACKED_BYTES", 1)
    torch.testing.assert_close(reference.linear(x, packed, bias), true)
    assert torch.equal(reference.multiplied_out(packed, 8, 24, torch.float32), packed.whole()[8:24])


@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_moved_and_cast_the_bytes_stay(form: str) -> None:
    weight = torch.randn(16, 64)
    packed = fp8_weight(weight, (8, 32), torch.bfloat16) if form == "fp8" else mxfp4_weight(weight, torch.bfloat16)
    assert packed.form == form
    wide = packed.float()
    assert isinstance(wide, PackedWeight)
    assert (wide.dtype, wide.scale.dtype, wide.values.dtype) == (torch.float32, packed.scale.dtype, packed.values.dtype)
    assert torch.equal(wide.whole().bfloat16(), packed.whole())
    copied = packed.to(torch.device("cpu"), copy=True)
    assert isinstance(copied, PackedWeight)
    assert copied.values.data_ptr() != packed.values.data_ptr()
    assert (copied.dtype, copied.packing) == (torch.bfloat16, packed.packing)
    assert torch.equal(copied.whole(), packed.whole())
    assert torch.equal(packed + 1, packed.whole() + 1)
