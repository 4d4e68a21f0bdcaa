"""Root mean square normalisation: the kernel against its reference, and modules that are found to compute just that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated

from outsize.kernels.cpu.library import kernels
from outsize.kernels.rmsnorm import KINDS, kind_of, norm, reference, replace_in

EPS = 1e-5
LAST_BITS = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-21}  # one, relative; of float32, 8


class Doubled(LlamaRMSNorm):
    """Looks like a normalisation, and is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("dtype", list(LAST_BITS), ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 17), (1, 1, 4096), (40, 2048)], ids=str)
def test_as_the_twin_but_for_a_last_bit(shape: tuple[int, ...], dtype: torch.dtype, kind: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=draw)).to(dtype)
    weight = torch.randn(shape[-1], generator=draw).to(dtype)
    ours, theirs = norm(x, weight, EPS, kind), reference(x, weight, EPS, kind)
    assert ours.dtype == dtype
    assert ours.shape == x.shape
    last_bit = LAST_BITS[dtype] * theirs.float().abs() + 1e-6
    assert bool(((ours.float() - theirs.float()).abs() <= last_bit).all())
    assert (ours != theirs).float().mean() < (1 if dtype == torch.float32 else 0.01)


@pytest.mark.usefixtures("build")
def test_numbers_that_are_none_stay_so() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]], dtype=torch.bfloat16)
    ours = norm(x, torch.ones(2, dtype=torch.bfloat16), EPS, 0)
    assert ours[0].isnan().all()
    assert torch.equal(ours[1], reference(x, torch.ones(2, dtype=torch.bfloat16), EPS, 0)[1])


@pytest.mark.parametrize(
    ("module", "kind"),
    [(LlamaRMSNorm, 0), (T5LayerNorm, 0), (Olmo2RMSNorm, 1), (Gemma2RMSNorm, 2)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_module_is_known_by_what_it_computes(module: Any, kind: int) -> None:
    assert kind_of(module(48, EPS)) == (EPS, kind)


@pytest.mark.parametrize(
    "module",
    [Doubled(48), nn.LayerNorm(48), nn.RMSNorm(48, eps=EPS), nn.Linear(4, 4, bias=False), nn.Identity(), nn.GELU()],
    ids=lambda module: type(module).__name__,
)
def test_all_else_is_left_alone(module: nn.Module) -> None:
    assert kind_of(module) is None


def test_a_models_norms_are_replaced_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels() is None:
        pytest.skip("the kernels are not compiled")
    model = nn.Sequential(LlamaRMSNorm(48), nn.LayerNorm(48), Doubled(48), LlamaRMSNorm(48))
    x = torch.randn(2, 48)
    before = [module(x) for module in model]
    replaced = replace_in(model)
    calls: list[int] = []
    monkeypatch.setattr("outsize.kernels.rmsnorm.norm", lambda x, *_: calls.append(1) or x)
    with torch.inference_mode():
        assert [torch.equal(module(x), x) for module in model] == [True, False, False, True]
    assert len(calls) == 2
    replaced.restore()
    assert all(torch.equal(module(x), old) for module, old in zip(model, before, strict=True))
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    replace_in(model)
    assert not any("forward" in module.__dict__ for module in model)


def test_weights_of_another_type_are_the_modules_own_business() -> None:
    module = LlamaRMSNorm(48)
    replaced = replace_in(module)
    x = torch.randn(2, 48).bfloat16()
    with torch.inference_mode():
        assert torch.equal(module(x), LlamaRMSNorm.forward(module, x))
        assert module(x).dtype == torch.float32
    replaced.restore()


def test_a_gate_is_the_modules_own_business() -> None:
    module = Zamba2RMSNormGated(48, group_size=48, eps=EPS)
    assert kind_of(module) == (EPS, 0)
    x, gate = torch.randn(2, 48), torch.randn(2, 48)
    own = type(module).forward
    replaced = replace_in(module)
    with torch.inference_mode():
        assert torch.equal(module(x, gate), own(module, x, gate))
        assert torch.equal(module(x, gate=gate), own(module, x, gate))
        assert torch.equal(module(hidden_states=x), own(module, x))
    replaced.restore()
