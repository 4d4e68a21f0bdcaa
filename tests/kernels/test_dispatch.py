from __future__ import annotations

import itertools

import pytest
import torch
from kernels.packed_weights import bound, exact, packed_weight, rounding
from torch.nn import functional

from outsize.kernels.cpu import linear as cpu
from outsize.kernels.dispatch import linear
from outsize.kernels.weights import NativeWeight
from outsize.models.formats import Packing

TYPES = (torch.bfloat16, torch.float16, torch.float32)
PACKINGS = (
    Packing(4, 128, words=True, scale="bfloat16"),
    Packing(8, 128, words=True, scale="float16"),
    Packing(4, 64, words=True, scale="float32", zero_points=True),
    Packing(8, 64, words=True, scale="bfloat16", zero_points=True),
    Packing(4, 32, words=True, scale="float16", zero_points=True),
    Packing(8, 32, words=False, scale="float32"),
    Packing(4, 256, words=True, scale="bfloat16", zero_points=True),
    Packing(8, 128, words=False, scale="bfloat16", zero_points=True),
    Packing(4, 4321, words=True, scale="bfloat16"),
    Packing(8, 4321, words=False, scale="float32"),
    Packing(8, 128, words=False, scale="float32", kind="fp8", rows=128),
    Packing(8, 256, words=False, scale="bfloat16", kind="fp8", rows=256),
)
SHAPES = ((1, 7), (9, 129), (21, 384), (10, 1000), (5, 2048 + 4), (3, 4321))  # [out, in]: tails of every kind


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def bits(y: torch.Tensor) -> torch.Tensor:
    return y.view(torch.int32 if y.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packed_weights_keep_the_stated_bound(build: str, packing: Packing) -> None:
    for (out, inputs), dtype in zip(SHAPES, itertools.cycle(TYPES)):
        weight = packed_weight(packing, out, inputs)
        whole = exact(weight)
        for rows in (1, 2, 3, 4, 7, 8, 16):
            x = torch.randn(rows, inputs).to(dtype)
            bias = torch.randn(out).to(dtype) if rows % 2 else None
            true = x.double() @ whole.T + (0 if bias is None else bias.double())
            y = linear(x, weight, bias)
            assert y.dtype == dtype
            error = (y.double() - true).abs()
            assert (error <= bound(x, weight) + 1.01 * rounding(true, dtype)).all(), (out, inputs, rows, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packing", PACKINGS[:2], ids=str)
def test_outliers_among_activations_keep_it_too(build: str, packing: Packing, dtype: torch.dtype) -> None:
    weight = packed_weight(packing, 64, 1024)
    whole = exact(weight)
    exactly = torch.randn(2, 1024)
    exactly[:, 300] *= 1000
    x = exactly.to(dtype)
    true = x.double() @ whole.T
    error = (linear(x, weight).double() - true).abs()
    assert (error <= bound(x, weight) + 1.01 * rounding(true, dtype)).all()
    # Rounding x to bf16, as a model in bf16 does by itself, costs more.
    if dtype == torch.float32:
        assert error.mean() < (x.bfloat16().double() @ whole.T - true).abs().mean() / 4


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_row_gives_the_same_bits_whatever_rows_are_beside_it(build: str, packing: Packing) -> None:
    weight = packed_weight(packing, 19, 1300)
    x = torch.randn(16, 1300) * torch.logspace(-3, 3, 1300)
    first = linear(x, weight)
    for rows in range(1, 16):
        y = torch.cat([linear(part, weight) for part in x.split(rows)])
        assert torch.equal(bits(y), bits(first)), rows


@pytest.mark.parametrize(("stored", "dtype"), list(itertools.product(TYPES, TYPES)))
def test_plain_weights_are_no_further_from_the_truth_than_torchs(
    build: str, stored: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "TILED_FROM", cpu.MOST_ROWS)
    ours, torchs = [], []
    for out, inputs in ((1, 3), (7, 33), (30, 259), (16, 1024), (5, 4099)):
        weight = torch.randn(out, inputs).to(stored)
        for rows in (1, 2, 3, 5, 8, 16):
            x = torch.randn(rows, inputs).to(dtype)
            bias = torch.randn(out).to(dtype) if rows % 2 else None
            true = x.double() @ weight.double().T + (0 if bias is None else bias.double())
            y = linear(x, weight, bias)
            assert y.dtype == dtype
            error = (y.double() - true).abs()
            size = x.double().abs() @ weight.double().abs().T
            assert (error <= 1.01 * rounding(true, dtype) + 2.0**-24 * (inputs / 8 + 16) * size).all(), (out, inputs)
            if stored == dtype:
                ours.append(error.flatten())
                torchs.append((functional.linear(x, weight, bias).double() - true).abs().flatten())
    if ours:
        mine, theirs = torch.cat(ours), torch.cat(torchs)
        assert mine.mean() <= theirs.mean() * 1.001
        assert mine.max() <= theirs.max() * (1.0 if dtype != torch.float32 else 1.5)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_many_rows_are_multiplied_tile_by_tile(build: str, packing: Packing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", 40_000)
    for dtype in TYPES:
        weight = packed_weight(packing, 30, 1000)
        x, bias = torch.randn(17, 1000).to(dtype), torch.randn(30).to(dtype)
        true = x.double() @ exact(weight).T + bias
        y = linear(x, weight, bias)
        assert y.dtype == dtype
        size = x.double().abs() @ exact(weight).abs().T
        # torch's own sums of 1000 products in float32 are off by up to one eps of their size.
        assert ((y.double() - true).abs() <= 2 * torch.finfo(dtype).eps * (true.abs() + size)).all()


def test_shapes_and_layouts_are_those_of_linear(build: str) -> None:
    weight, bias = torch.randn(6, 64), torch.randn(6)
    packed = packed_weight(PACKINGS[0], 6, 64)
    for x in (torch.randn(64), torch.randn(2, 3, 64), torch.randn(64, 4).T, torch.randn(0, 64), torch.randn(3, 7, 64)):
        assert linear(x, weight, bias).shape == (*x.shape[:-1], 6)
        torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias))
        torch.testing.assert_close(linear(x, packed), functional.linear(x, exact(packed).float()), rtol=1e-3, atol=1e-3)


def test_what_is_not_finite_stays_so(build: str) -> None:
    packed = packed_weight(PACKINGS[1], 4, 256)
    x = torch.ones(3, 256)
    x[0, 5], x[1, 7] = torch.inf, torch.nan
    x[2] = 2.0**-110
    y = linear(x, packed)
    assert y[:2].isnan().all()
    assert (y[2] == 0).all()
    assert linear(x, torch.ones(4, 256))[:2].isfinite().sum() == 0


def test_a_subclass_sends_linear_to_the_kernels_and_all_else_to_torch(build: str) -> None:
    plain = torch.randn(12, 40)
    weight = plain.as_subclass(NativeWeight)
    x, bias = torch.randn(3, 40), torch.randn(12)
    assert torch.equal(bits(functional.linear(x, weight, bias)), bits(linear(x, plain, bias)))
    assert torch.equal(functional.linear(input=x, weight=weight, bias=bias), linear(x, plain, bias))
    assert type(weight + 1) is torch.Tensor
    assert weight.shape == plain.shape
    assert weight.data_ptr() == plain.data_ptr()
    many = torch.randn(20, 40)
    assert torch.equal(functional.linear(many, weight, bias), functional.linear(many, plain, bias))


def test_gradients_come_from_torch(build: str) -> None:
    x = torch.randn(2, 40, requires_grad=True)
    linear(x, torch.randn(3, 40).as_subclass(NativeWeight)).sum().backward()
    assert x.grad is not None
    x.grad = None
    linear(x, packed_weight(PACKINGS[0], 3, 40)).sum().backward()
    assert x.grad is not None


def test_groups_that_no_kernel_knows_go_to_the_twin(build: str) -> None:
    for packing in (
        Packing(4, 40, words=True, scale="float32"),
        Packing(8, 64, words=False, scale="float32", kind="fp8", rows=64),
        Packing(8, 128, words=False, scale="float32", kind="fp8", rows=1),
    ):
        weight = packed_weight(packing, 5, 200)
        x = torch.randn(2, 200)
        torch.testing.assert_close(linear(x, weight), functional.linear(x, exact(weight).float()))
