"""mxfp4 in the compiled kernels, as test_dispatch and test_grouped have the others, and what counts as no number."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernels.packed_weights import bound, exact, packed_weight, rounding

from outsize.kernels import reference
from outsize.kernels.cpu import linear as cpu
from outsize.kernels.cpu.linear import described_packed
from outsize.kernels.dispatch import Group, grouped_linear, linear
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import MXFP4, Packing

TYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = ((1, 32), (9, 160), (21, 384), (10, 992), (50, 2048 + 32), (3, 4320))  # [out, in]: tails of every kind
FP8 = Packing(8, 128, words=False, scale="float32", kind="fp8", rows=128)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def bits(y: torch.Tensor) -> torch.Tensor:
    return y.view(torch.int32 if y.dtype == torch.float32 else torch.int16)


def test_mxfp4_keeps_the_stated_bound(build: str) -> None:
    for (out, inputs), dtype in itertools.product(SHAPES, TYPES):
        weight = packed_weight(MXFP4, out, inputs)
        assert described_packed(weight)[2]
        whole = exact(weight)
        for rows in (1, 2, 3, 4, 7, 8, 16):
            x = torch.randn(rows, inputs).to(dtype)
            bias = torch.randn(out).to(dtype) if rows % 2 else None
            true = x.double() @ whole.T + (0 if bias is None else bias.double())
            y = linear(x, weight, bias)
            assert y.dtype == dtype
            assert ((y.double() - true).abs() <= bound(x, weight) + 1.01 * rounding(true, dtype)).all()


def test_every_number_of_four_bits_and_of_eight(build: str) -> None:
    """One input at a time, of which all others are zero: what comes out is the weight, rounded as activations are."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(8, 16, 16).contiguous()
    exponents = torch.tensor([0, 1, 40, 126, 127, 128, 200, 254], dtype=torch.uint8).view(8, 1).expand(8, 16)
    four = PackedWeight(blocks, exponents.contiguous(), None, MXFP4, (8, 512), torch.bfloat16)
    eight = torch.arange(256, dtype=torch.uint8)
    eight = torch.where(eight & 0x7F == 0x7F, 0, eight).view(torch.float8_e4m3fn).view(1, 256)
    scale = torch.tensor([[0.37, -3.0]])
    for weight in (four, PackedWeight(eight, scale, None, FP8, (1, 256), torch.bfloat16)):
        x = torch.eye(weight.shape[1])
        y = torch.cat([linear(rows, weight) for rows in x.split(16)])
        torch.testing.assert_close(y.T, weight.float().whole(), rtol=2.0**-22, atol=2.0**-148)


def test_a_row_gives_the_same_bits_whatever_rows_are_beside_it(build: str) -> None:
    weight = packed_weight(MXFP4, 19, 1312)
    x = torch.randn(16, 1312) * torch.logspace(-3, 3, 1312)
    first = linear(x, weight)
    for rows in range(1, 16):
        assert torch.equal(bits(torch.cat([linear(part, weight) for part in x.split(rows)])), bits(first)), rows


@pytest.mark.parametrize("packing", [MXFP4, FP8], ids=str)
def test_tiles_are_what_the_reference_multiplies_out(
    build: str, packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", 40_000)
    for dtype in TYPES:
        weight = packed_weight(packing, 300, 992)
        tile = torch.eye(992).to(dtype)
        true = reference.multiplied_out(weight, 0, 300, dtype)
        assert torch.equal(bits(linear(tile, weight).T.contiguous()), bits(true + 0)), dtype


def test_groups_give_the_bits_of_single_calls(build: str) -> None:
    counts, outs = (1, 0, 2, 5, 16, 20), (17, 40)
    for inputs, dtype in zip((32, 160, 992, 1312), itertools.cycle(TYPES)):
        groups = [
            Group(count, tuple(packed_weight(MXFP4, out, inputs, 2 * i + j) for j, out in enumerate(outs)))
            for i, count in enumerate(counts)
        ]
        x = (torch.randn(sum(counts), inputs) * torch.logspace(-3, 3, inputs)).to(dtype)
        single = [
            torch.cat([linear(rows, weight) for weight in group.weights], -1)
            for rows, group in zip(x.split(counts), groups, strict=True)
        ]
        assert torch.equal(bits(grouped_linear(x, groups)), bits(torch.cat(single)))


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 17])
def test_no_number_makes_its_output_none_and_no_other(build: str, rows: int) -> None:
    for weight in (packed_weight(MXFP4, 20, 224), packed_weight(FP8, 20, 200)):
        if weight.form == "fp8":
            weight.values.view(torch.uint8)[3, 199] = 0xFF
            weight.values.view(torch.uint8)[13, 5] = 0x7F
        else:
            weight.scale[3, 6] = weight.scale[13, 0] = 255
        y = linear(torch.randn(rows, weight.shape[1]), weight)
        assert not y[:, [3, 13]].isfinite().any()
        assert y.isfinite().sum() == rows * 18


@pytest.mark.parametrize("packing", [MXFP4, FP8], ids=str)
def test_activations_that_are_no_numbers(build: str, packing: Packing) -> None:
    x = torch.ones(3, 256)
    x[0, 5], x[1, 7] = torch.inf, torch.nan
    y = linear(x, packed_weight(packing, 4, 256))
    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()
