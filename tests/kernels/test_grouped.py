from __future__ import annotations

import pytest
import torch
from kernels.packed_weights import exact, packed_weight
from torch.nn import functional

from outsize.kernels.dispatch import Group, grouped_linear, linear
from outsize.kernels.weights import NativeWeight
from outsize.models.formats import Packing

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def one_by_one(x: Tensor, groups: list[Group]) -> Tensor:
    """What the groups are defined as: ``linear`` for the rows of each, a weight after the other."""
    parts = []
    for rows, group in zip(x.split([group.rows for group in groups]), groups, strict=True):
        shares: list[Tensor | None] = [None] * len(group.weights)
        if group.bias is not None:
            shares = list(group.bias.split([weight.shape[0] for weight in group.weights]))
        parts.append(
            torch.cat([linear(rows, weight, share) for weight, share in zip(group.weights, shares, strict=True)], -1)
        )
    return torch.cat(parts)


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
    with pytest.raises(ValueError, match=r"groups of \[1, 1\] rows and \[6, 6\] outputs do not fit x of \(3, 40\)"):
        grouped_linear(x, [Group(1, (weight,)), Group(1, (weight,))])
    with pytest.raises(ValueError, match=r"\[6, 5\] outputs"):
        grouped_linear(x, [Group(2, (weight,)), Group(1, (weight[:5],))])
    with pytest.raises(ValueError, match=r"do not fit x of \(40,\)"):
        grouped_linear(x[0], [Group(40, (weight,))])


def test_gradients_of_groups_come_from_torch() -> None:
    x, plain = torch.randn(3, 40, requires_grad=True), torch.randn(6, 40, requires_grad=True)
    packed = packed_weight(Packing(4, 128, words=True, scale="float32"), 6, 40)
    grouped_linear(x, [Group(1, (plain,)), Group(2, (packed,))]).sum().backward()
    assert x.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(x.grad[1:], exact(packed).float().sum(0).expand(2, 40))
    torch.testing.assert_close(plain.grad, x[:1].detach().expand(6, 40))


def test_weights_of_all_forms_may_be_mixed() -> None:
    native = torch.randn(6, 40).as_subclass(NativeWeight)
    packed = packed_weight(Packing(8, 32, words=False, scale="float32"), 6, 40)
    groups = [Group(2, (native, packed)), Group(1, (packed, native))]
    x = torch.randn(3, 40)
    assert torch.equal(grouped_linear(x, groups), one_by_one(x, groups))
