"""Linear layers that call the kernels themselves give what they gave, and are given back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.packed_weights import packed_weight
from torch import nn

from outsize.kernels import linear_modules
from outsize.kernels.bf12 import encode
from outsize.kernels.cpu.library import kernels
from outsize.models.formats import Packing

OUT, IN = 40, 256


def weight_of(kind: str) -> Any:
    if kind == "bf12":
        drawn = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)).bfloat16()
        return encode(drawn)
    bits, group = {"int4": (4, 128), "int8": (8, 128), "groups of 16": (4, 16)}[kind]
    return packed_weight(Packing(bits, group, words=True, scale="bfloat16"), OUT, IN)


def layer(kind: str, bias: torch.dtype | None = torch.bfloat16) -> nn.Linear:
    made = nn.Linear(IN, OUT, bias=bias is not None)
    made._parameters["weight"] = nn.Parameter(weight_of(kind), requires_grad=False)
    if bias is not None:
        made._parameters["bias"] = nn.Parameter(torch.randn(OUT).to(bias), requires_grad=False)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the calls that took the short way."""
    if kernels() is None:
        pytest.skip("the kernels are not compiled")
    rows: list[int] = []
    real = linear_modules._multiply

    def multiply(build: Any, x: torch.Tensor, count: int, *rest: Any) -> torch.Tensor:
        rows.append(count)
        return real(build, x, count, *rest)

    monkeypatch.setattr(linear_modules, "_multiply", multiply)
    return rows


@pytest.mark.parametrize("kind", ["bf12", "int4", "int8", "groups of 16"])
@pytest.mark.parametrize("bias", [None, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("shape", "short"), [((1, 1, IN), True), ((IN,), True), ((2, 8, IN), True), ((17, IN), False), ((0, IN), False)]
)
def test_the_short_way_gives_the_same_bits(
    kind: str, bias: torch.dtype | None, shape: tuple[int, ...], short: bool, called: list[int]
) -> None:
    if bias is torch.float32 and (kind == "groups of 16" or 0 in shape):
        pytest.skip("torch computes these, and wants one type")
    module = layer(kind, bias)
    x = torch.randn(shape).bfloat16()
    with torch.inference_mode():
        before = module(x)  # also describes packed weights
        replaced = linear_modules.replace_in(module)
        assert torch.equal(module(x), before)
    assert bool(called) == (short and bias is not torch.float32)
    replaced.restore()
    assert "forward" not in module.__dict__


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_activations_of_other_types(dtype: torch.dtype, called: list[int]) -> None:
    module = layer("int4", None)
    x = torch.randn(2, IN).to(dtype)
    with torch.inference_mode():
        before = module(x)
        linear_modules.replace_in(module)
        assert torch.equal(module(x), before)
    assert bool(called) == (dtype is not torch.float64)


def test_every_other_row_of_something_and_gradients_go_the_long_way(called: list[int]) -> None:
    module = layer("bf12")
    linear_modules.replace_in(module)
    x = torch.randn(2, 2 * IN).bfloat16()
    with torch.inference_mode():
        assert torch.equal(module(x[:, ::2]), module(x[:, ::2].contiguous()))
    assert called == [2]
    module(x[:, ::2].contiguous())
    assert called == [2]


def test_what_does_not_match_is_said(called: list[int]) -> None:
    module = layer("bf12")
    linear_modules.replace_in(module)
    with torch.inference_mode(), pytest.raises(ValueError, match="times a weight of"):
        module(torch.randn(1, IN + 1).bfloat16())


def test_plain_layers_and_other_kinds_stay_as_they_are(called: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Linear(IN, OUT)
    model = nn.Sequential(plain, nn.Identity(), nn.Bilinear(2, 2, 2))
    replaced = linear_modules.replace_in(model)
    assert [("forward" in module.__dict__) for module in model] == [True, False, False]
    x = torch.randn(1, IN)
    with torch.inference_mode():
        assert torch.equal(plain(x), nn.functional.linear(x, plain.weight, plain.bias))
    assert not called
    replaced.restore()
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    linear_modules.replace_in(model)
    assert not any("forward" in module.__dict__ for module in model)
