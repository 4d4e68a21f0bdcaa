from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from outsize.errors import DamagedModel
from outsize.kernels import quantize as quantising
from outsize.kernels.quantize import Quantised, quantise
from outsize.kernels.reference import dequantise
from outsize.models.formats import Packing


def gaussian(rows: int = 16, inputs: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * 0.02


def heavy_tailed(rows: int = 16, inputs: int = 256) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.distributions.StudentT(3.0).sample((rows, inputs)) * 0.02


def restored(made: Quantised, bits: int, group: int, like: torch.Tensor) -> torch.Tensor:
    packing = Packing(bits, group, words=True, scale=str(like.dtype).removeprefix("torch."))
    return dequantise(made.words, made.scale, None, packing, tuple(like.shape), torch.float32)


def error(weight: torch.Tensor, bits: int = 4, group: int = 128, *, search: bool = True) -> float:
    """Squared error as a part of the weights' own square."""
    made = quantise(weight, bits, group, search=search)
    return float((restored(made, bits, group, weight) - weight.float()).square().sum() / weight.float().square().sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_and_scales_are_as_the_package_reads_them(bits: int, group: int, dtype: torch.dtype) -> None:
    weight = gaussian().to(dtype)
    made = quantise(weight, bits, group)
    assert made.words.shape == (16, 256 * bits // 32)
    assert (made.scale.shape, made.scale.dtype) == ((16, 256 // group), dtype)
    values = unpack_from_int32(made.words, bits, torch.Size((16, 256)))
    theirs = values.float() * made.scale.float().repeat_interleave(group, 1)
    assert torch.equal(theirs, restored(made, bits, group, weight))
    step = made.scale.float().abs().repeat_interleave(group, 1)
    beyond = (theirs - weight.float()).abs() > step * 0.51  # clipped, on purpose: few
    assert beyond.float().mean() < (0.03 if bits == 4 else 0.001)


def test_the_search_beats_plain_rounding_by_a_quarter_and_more() -> None:
    for weight in (gaussian(), heavy_tailed()):
        assert error(weight.bfloat16()) < 0.75 * error(weight.bfloat16(), search=False)


def test_the_search_is_close_to_the_best_scale() -> None:
    weight = gaussian(4)
    grouped = weight.view(-1, 128)
    largest = grouped.abs().amax(1, keepdim=True)
    best = torch.full((len(grouped),), torch.inf)
    for part in torch.linspace(6, 20, 300):
        for sign in (1, -1):
            scale = sign * largest / part
            off = ((grouped / scale).round().clamp(-8, 7) * scale - grouped).square().sum(1)
            best = torch.minimum(best, off)
    assert error(weight) * weight.square().sum() < 1.03 * best.sum()


def test_int8_is_lossless_in_practice() -> None:
    assert error(gaussian().bfloat16(), 8) < 1e-4
    assert error(heavy_tailed().bfloat16(), 8) < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_bytes_whatever_the_chunks_and_threads(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.cat([gaussian(40, 512), heavy_tailed(41, 512)]).bfloat16()
    whole = quantise(weight, bits, 128)
    for chunk, threads in ((128, 1), (640, 2), (1 << 13, 1), (1 << 16, 3)):
        monkeypatch.setattr(quantising, "CHUNK_PER_THREAD", chunk)
        torch.set_num_threads(threads)
        made = quantise(weight, bits, 128)
        assert torch.equal(made.words, whole.words)
        assert torch.equal(made.scale, whole.scale)
    rows = [quantise(weight[start : start + 7], bits, 128) for start in range(0, len(weight), 7)]
    assert torch.equal(torch.cat([made.words for made in rows]), whole.words)
    assert torch.equal(torch.cat([made.scale for made in rows]), whole.scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_zeros_stay_zeros(bits: int) -> None:
    weight = gaussian()
    weight[3], weight[5, :128] = 0, 0
    made = quantise(weight, bits, 128)
    again = restored(made, bits, 128, weight)
    assert not again[3].any()
    assert not again[5, :128].any()
    assert not made.scale[3].any()
    assert again[5, 128:].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_smallest_and_the_largest_numbers(bits: int, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    tiny = limits.smallest_normal * limits.eps
    weight = torch.zeros(5, 128)
    weight[0, 7] = tiny  # its scale would be no number of the type any more
    weight[1] = torch.linspace(-3, 3, 128) * tiny
    weight[2] = torch.linspace(-1, 1, 128) * limits.max
    weight[3] = torch.linspace(-1, 1, 128) * limits.smallest_normal
    weight[4, 0], weight[4, 1:] = limits.max, tiny
    weight = weight.to(dtype)
    made = quantise(weight, bits, 128)
    assert torch.isfinite(made.scale).all()
    again = restored(made, bits, 128, weight)
    assert torch.isfinite(again.to(dtype)).all()
    assert again[0, 7] == weight[0, 7].float()
    largest = weight.float().abs().amax(1, keepdim=True)
    off = (again - weight.float()).abs()
    assert (off <= torch.clamp(largest / (5 if bits == 4 else 120), min=tiny)).all()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_number_is_refused_by_name(bits: int, odd: float) -> None:
    weight = gaussian().half()
    weight[9, 200] = odd
    with pytest.raises(DamagedModel, match=r"h\.3\.fc1\.weight .* no finite number"):
        quantise(weight, bits, 128, "h.3.fc1.weight")


def test_what_it_is_not_made_for() -> None:
    for weight, bits, group in ((gaussian(2, 100), 4, 128), (gaussian().double(), 4, 128), (gaussian(), 3, 128)):
        with pytest.raises(ValueError, match="cannot be quantised"):
            quantise(weight, bits, group)
    assert quantising.scratch_bytes() < 8 << 20
