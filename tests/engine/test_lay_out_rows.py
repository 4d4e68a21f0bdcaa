"""The head's input is laid out anew where torch would copy the head, and is left alone elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from outsize.engine.logits import lay_out_rows

HEAD = torch.nn.Linear(64, 99, bias=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_last_of_a_prompt_in_16_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 16, 64).to(dtype)[:, -1:, :]  # [1, 1, 64], with the prompt's strides
    weight = torch.randn(99, 64).to(dtype)
    (laid_out,) = lay_out_rows(HEAD, (hidden,))
    assert laid_out.stride() == (64, 64, 1)
    assert torch.equal(functional.linear(laid_out, weight), functional.linear(hidden, weight))


def test_what_torch_multiplies_as_it_is() -> None:
    half = torch.zeros(2, 16, 64, dtype=torch.bfloat16)
    for hidden in (half, half[:1], torch.zeros(2, 16, 64)[:, -1:, :], half[0, -1:], half.to("meta")[:, -1:]):
        assert lay_out_rows(HEAD, (hidden,)) is None
    assert lay_out_rows(HEAD, ()) is None
