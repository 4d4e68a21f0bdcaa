"""Weights that rest on disk: what is read of them, whatever code of a model does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from outsize.engine.placeholders import RowsOnDisk
from outsize.errors import OutsizeError

WEIGHT = torch.randn(10, 4)
USES: dict[str, tuple[Callable[[Any], torch.Tensor], list[int]]] = {
    "look-up": (lambda w: functional.embedding(torch.tensor([[3, 1], [3, 9]]), w), [1, 3, 9]),
    "row": (lambda w: w[2], [2]),
    "row from the end": (lambda w: w[-1], [9]),
    "rows": (lambda w: w[2:5], [2, 3, 4]),
    "part of a row": (lambda w: w[2, 1:3], [2]),
    "part of rows": (lambda w: w[6:8, None, 1:3], [6, 7]),
    "numbers": (lambda w: w[torch.tensor([4, 4])], list(range(10))),
    "product": (lambda w: torch.ones(2, 4) @ w.t(), list(range(10))),
}


@pytest.mark.parametrize("use", USES)
def test_uses(use: str) -> None:
    read: list[int] = []

    def rows(numbers: list[int]) -> torch.Tensor:
        read.extend(numbers)
        return WEIGHT[numbers]

    stand_in = nn.Parameter(RowsOnDisk("w", (10, 4), torch.float32, rows), requires_grad=False)
    act, expected = USES[use]
    assert torch.equal(act(stand_in), act(WEIGHT))
    assert read == expected


def test_its_bytes_are_nowhere() -> None:
    stand_in = RowsOnDisk("w", (10, 4), torch.float32, lambda numbers: WEIGHT[numbers])
    with pytest.raises(OutsizeError, match="looked up by row only"):
        stand_in.untyped_storage()
    with pytest.raises(IndexError):
        stand_in[10]
