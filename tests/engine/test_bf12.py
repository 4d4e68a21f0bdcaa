"""bfloat16 weights held in 12 bits: transformers' own bits, from every tier; and what has no room for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, write_checkpoint

import outsize
from outsize.kernels.bf12 import Bf12Weight

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned as with compiled kernels, computed by torch; and blocks of a few KB may be held so."""
    monkeypatch.setattr("outsize.options.are_kernels_compiled", lambda environ: True)


def make(folder: Path, spoil: bool = False) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    if spoil:  # exponents all over the place, in one weight of one block
        weight = model.model.layers[2].mlp.up_proj.weight
        scale = torch.exp2(torch.randint(-60, -4, weight.shape).float())
        weight.data = (torch.randn(weight.shape) * scale).to(torch.bfloat16)
    return write_checkpoint(folder, model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bf12"))


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def held(model: Any) -> int:
    return sum(isinstance(tensor, Bf12Weight) for tensor in model.parameters())


def load(folder: Path, share: float) -> Any:
    """The model with so much of its weights' bytes in RAM."""
    whole = outsize.plan(str(folder), weights="native", context=32, no_gpu=True)
    limit = int(share * sum(group.rest_bytes for group in whole.groups))
    return outsize.load(folder, no_gpu=True, weight_limits={"ram": limit}, context=32)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_the_bits_are_transformers_own(folder: Path, share: float) -> None:
    other = theirs(folder)
    with load(folder, share) as model, torch.no_grad():
        plan = model.outsize.plan
        assert plan.predicted.disk_bytes_per_token > 0
        for _ in range(2):
            assert torch.equal(model(PROMPT).logits, other(PROMPT).logits)
        assert held(model) >= 7  # a block's at least
        want = other.generate(PROMPT, max_new_tokens=6, do_sample=False)
        assert torch.equal(model.generate(PROMPT, max_new_tokens=6, do_sample=False), want)


def test_what_has_no_room_in_twelve_bits_is_streamed(tmp_path: Path) -> None:
    folder = make(tmp_path, spoil=True)
    other = theirs(folder)
    with load(folder, 0.75) as model, torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(PROMPT).logits, other(PROMPT).logits)
        before = model.outsize.stats.bytes_read
        model(PROMPT)
        read = model.outsize.stats.bytes_read - before
        assert read > model.outsize.plan.predicted.disk_bytes_per_token


def test_the_compiled_kernels_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "auto")
    exact = theirs(folder).double()(PROMPT).logits
    plain = theirs(folder)(PROMPT).logits
    with load(folder, 0.6) as model, torch.no_grad():
        assert held(model) == 0
        ours = model(PROMPT).logits
        assert held(model) >= 7
    assert (ours.double() - exact).abs().max() <= 1.5 * (plain.double() - exact).abs().max()


def test_other_tiers_and_models_are_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())  # float32
    with load(folder, 0.5) as model, torch.no_grad():
        assert not any(group.format == "bf12" for group in model.outsize.plan.groups)
        assert torch.equal(model(PROMPT).logits, theirs(folder)(PROMPT).logits)
