from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from kernels.packed_weights import bound, exact, packed_weight, rounding
from torch.nn import functional

from outsize.kernels import bf12, dispatch
from outsize.kernels.cpu import grouped
from outsize.kernels.cpu import linear as cpu
from outsize.kernels.dispatch import Group, grouped_linear, linear
from outsize.kernels.weights import NativeWeight
from outsize.models.formats import Packing

Tensor = torch.Tensor
Make = Callable[[int, int, int], Any]  # outputs, inputs, seed -> a weight
TYPES = (torch.bfloat16, torch.float16, torch.float32)
PACKINGS = (
    Packing(4, 128, words=True, scale="bfloat16"),
    Packing(8, 128, words=True, scale="float16"),
    Packing(4, 64, words=True, scale="float32", zero_points=True),
    Packing(8, 32, words=True, scale="bfloat16", zero_points=True),
    Packing(4, 32, words=True, scale="float16"),
    Packing(8, 64, words=False, scale="float32"),
    Packing(8, 128, words=False, scale="bfloat16", zero_points=True),
    Packing(4, 4321, words=True, scale="bfloat16", zero_points=True),
    Packing(8, 128, words=False, scale="float32", kind="fp8", rows=128),
    Packing(8, 256, words=False, scale="bfloat16", kind="fp8", rows=256),
)
SHAPES = (((3,), 7), ((9, 5), 129), ((100,), 384), ((40, 47), 1000), ((257, 16, 8), 260))  # outputs of weights, inputs
ROWS = ((1,), (1, 1, 1, 1, 1, 1, 1, 1), (2, 0, 16), (3, 1, 7, 8), tuple(range(1, 17)), (5, 20, 4))


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def packed(packing: Packing) -> Make:
    return lambda out, inputs, seed: packed_weight(packing, out, inputs, seed)


def plain(dtype: torch.dtype) -> Make:
    return lambda out, inputs, seed: torch.randn(out, inputs).to(dtype).as_subclass(NativeWeight)


def twelve_bits(out: int, inputs: int, seed: int) -> Any:
    weight = bf12.encode(torch.randn(out, inputs).bfloat16(), limit=0.5)
    assert weight is not None
    return weight


def groups_of(make: Make, rows: Sequence[int], outs: Sequence[int], inputs: int, dtype: torch.dtype) -> list[Group]:
    """Every other one has a bias."""
    made = []
    for index, count in enumerate(rows):
        weights = tuple(make(out, inputs, 100 * index + place) for place, out in enumerate(outs))
        made.append(Group(count, weights, torch.randn(sum(outs)).to(dtype) if index % 2 else None))
    return made


def one_by_one(x: Tensor, groups: Sequence[Group]) -> Tensor:
    """What the groups are defined as: ``linear`` for the rows of each, a weight after the other."""
    parts = []
    for rows, group in zip(x.split([group.rows for group in groups]), groups, strict=True):
        if not group.rows:
            continue
        shares: list[Tensor | None] = [None] * len(group.weights)
        if group.bias is not None:
            shares = list(group.bias.split([weight.shape[0] for weight in group.weights]))
        parts.append(
            torch.cat([linear(rows, weight, share) for weight, share in zip(group.weights, shares, strict=True)], -1)
        )
    return torch.cat(parts)


def bits(y: Tensor) -> Tensor:
    return y.view(torch.int32 if y.dtype == torch.float32 else torch.int16)


def check_bits(make: Make, types: Sequence[torch.dtype], most: int = 1000) -> None:
    """All shapes, and groups of ``most`` rows, in turn with the types."""
    types = itertools.cycle(types)
    for (outs, inputs), rows in itertools.product(SHAPES, ROWS):
        dtype = next(types)
        rows = [min(count, most) for count in rows]
        groups = groups_of(make, rows, outs, inputs, dtype)
        x = (torch.randn(sum(rows), inputs) * torch.logspace(-3, 3, inputs)).to(dtype)
        y = grouped_linear(x, groups)
        assert y.dtype == dtype
        assert torch.equal(bits(y), bits(one_by_one(x, groups))), (outs, inputs, rows, dtype)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packed_weights_give_the_bits_of_single_calls(build: str, packing: Packing) -> None:
    check_bits(packed(packing), TYPES)


@pytest.mark.parametrize("stored", TYPES, ids=str)
def test_plain_weights_give_the_bits_of_single_calls(
    build: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_bits(plain(stored), (stored,))  # with torch's tiles, where there are such
    monkeypatch.setattr(cpu, "TILED_FROM", cpu.MOST_ROWS)
    check_bits(plain(stored), TYPES, cpu.MOST_ROWS)  # torch has no products of different types


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_groups_of_packed_weights_keep_the_stated_bound(build: str, packing: Packing) -> None:
    for dtype in TYPES:
        groups = groups_of(packed(packing), (1, 3, 16), (19, 8), 1000, dtype)
        x = torch.randn(20, 1000).to(dtype)
        whole = grouped_linear(x, groups).double()
        for rows, y, group in zip(x.split([1, 3, 16]), whole.split([1, 3, 16]), groups, strict=True):
            true = torch.cat([rows.double() @ exact(weight).T for weight in group.weights], -1)
            true += 0 if group.bias is None else group.bias.double()
            allowed = torch.cat([bound(rows, weight) for weight in group.weights], -1)
            assert ((y - true).abs() <= allowed + 1.01 * rounding(true, dtype)).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_groups_of_plain_weights_agree_with_the_reference(
    build: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "TILED_FROM", cpu.MOST_ROWS)
    groups = groups_of(plain(dtype), (1, 3, 16), (19, 8), 1000, dtype)
    x = torch.randn(20, 1000).to(dtype)
    y = grouped_linear(x, groups)
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    torchs = grouped_linear(x, groups)
    error = 2 * rounding(torchs.double(), dtype) + 2.0**-24 * (1000 / 8 + 16) * 4000  # of 1000 products about 4 at most
    assert ((y.double() - torchs.double()).abs() <= error).all()


def test_12_bit_weights_give_the_bits_of_single_calls(build: str) -> None:
    check_bits(twelve_bits, TYPES)


@pytest.mark.parametrize("make", [plain(torch.bfloat16), packed(PACKINGS[0]), packed(PACKINGS[6]), twelve_bits])
def test_one_thread_or_many_give_the_same_bits(build: str, make: Make) -> None:
    groups = groups_of(make, (1, 4, 2, 1), (777, 24), 1024, torch.bfloat16)  # enough for threads to share the rows of x
    x = torch.randn(8, 1024).bfloat16().repeat(8, 1)
    groups = [group for group in groups for _ in range(8)]
    y = grouped_linear(x, groups)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(bits(grouped_linear(x, groups)), bits(y)), threads


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of jobs of each call of the library that comes; single products fail."""
    build, jobs = grouped.build_in_use(), []

    def call(index: int, threads: int, count: int, *rest: Any) -> Any:
        jobs.append(count)
        return build.grouped(index, threads, count, *rest)

    counting = dataclasses.replace(build, grouped=call)
    monkeypatch.setattr(grouped, "build_in_use", lambda: counting)
    monkeypatch.setattr(dispatch, "linear", None)
    return jobs


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_all_forms_are_one_call_of_the_kernels(build: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    makes = (plain(torch.float32), plain(torch.bfloat16), twelve_bits, *map(packed, PACKINGS))
    weights = [make(20, 300, 0) for make in makes]
    groups = [Group(1 + index % 3, pair) for index, pair in enumerate(itertools.pairwise(weights))]
    groups += [Group(2, (weight, weight)) for weight in weights]  # with the same activations
    x = torch.randn(sum(group.rows for group in groups), 300).to(dtype)
    expected = one_by_one(x, groups)
    jobs = counted(monkeypatch)
    assert torch.equal(bits(grouped_linear(x, groups)), bits(expected))
    assert jobs == [2 * len(groups)]


def test_scratch_for_activations_is_bounded(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = groups_of(packed(PACKINGS[0]), (4,) * 9, (8, 8), 128, torch.float32)
    x = torch.randn(36, 128)
    expected = one_by_one(x, groups)
    jobs = counted(monkeypatch)
    monkeypatch.setattr(
        grouped, "SCRATCH_BYTES", 5 * 4 * (128 + grouped.PADDING) * 4
    )  # five groups' at most, were nothing shared
    assert torch.equal(bits(grouped_linear(x, groups)), bits(expected))
    assert jobs == [4, 5, 4, 5]
    monkeypatch.setattr(grouped, "SCRATCH_BYTES", 0)
    assert torch.equal(bits(grouped_linear(x, groups)), bits(expected))


def test_what_the_kernels_do_not_know_is_left_to_linear(build: str) -> None:
    unknown, known = packed_weight(Packing(4, 40, words=True, scale="float32"), 6, 200), torch.randn(6, 200)
    groups = [Group(1, (unknown, known)), Group(3, (known.T.contiguous().T, unknown))]
    x = torch.randn(200, 4).T
    for rows in (x, x.bfloat16().float().contiguous()):
        torch.testing.assert_close(grouped_linear(rows, groups), one_by_one(rows, groups), rtol=0, atol=0)


def test_weights_of_a_group_stand_beside_each_other() -> None:
    weights = [(torch.randn(5, 40), torch.randn(3, 40)), (torch.randn(4, 40), torch.randn(4, 40))]
    bias = torch.randn(8)
    x = torch.randn(7, 40)
    y = grouped_linear(x, [Group(3, weights[0], bias), Group(4, weights[1])])
    true = [functional.linear(x[:3], torch.cat(weights[0]), bias), functional.linear(x[3:], torch.cat(weights[1]))]
    torch.testing.assert_close(y, torch.cat(true))


def test_groups_without_rows_compute_nothing() -> None:
    weight, other = torch.randn(6, 40), torch.full((6, 40), torch.nan)
    x = torch.randn(2, 40)
    groups = [Group(0, (other,)), Group(2, (weight,)), Group(0, (other,))]
    assert torch.equal(grouped_linear(x, groups), linear(x, weight))
    assert grouped_linear(x[:0], groups[:1]).shape == (0, 6)


def test_groups_that_do_not_fit_are_refused() -> None:
    x, weight = torch.randn(3, 40), torch.randn(6, 40)
    with pytest.raises(ValueError, match=r"groups of \[1, 1\] rows do not fit x of \(3, 40\)"):
        grouped_linear(x, [Group(1, (weight,)), Group(1, (weight,))])
    with pytest.raises(ValueError, match="a group has 5 outputs, bias None; the first has 6 outputs"):
        grouped_linear(x, [Group(2, (weight,)), Group(1, (weight[:5],))])
    with pytest.raises(ValueError, match=r"do not fit x of \(40,\)"):
        grouped_linear(x[0], [Group(40, (weight,))])


def test_gradients_of_groups_come_from_torch() -> None:
    with torch.inference_mode(False):
        x, weight = torch.randn(3, 40, requires_grad=True), torch.randn(6, 40, requires_grad=True)
        integers = packed_weight(Packing(4, 128, words=True, scale="float32"), 6, 40)
        grouped_linear(x, [Group(1, (weight,)), Group(2, (integers,))]).sum().backward()
        assert x.grad is not None
        assert weight.grad is not None
        torch.testing.assert_close(x.grad[1:], exact(integers).float().sum(0).expand(2, 40))
        torch.testing.assert_close(weight.grad, x[:1].detach().expand(6, 40))
