"""With the compiled kernels: transformers' numbers within rounding, and its tokens, for native and packed weights.

Skipped where nothing was compiled. Seeds are such that no two tokens are near each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, Architecture, write_checkpoint
from engine import every_tier
from quantised import Scheme, transformers_own, write_quantised

import outsize
from outsize.kernels.cpu.library import NoLibrary, load
from outsize.kernels.weights import NativeWeight, PackedWeight

# As a share of the largest logit. The data type's own rounding, layer after layer, and for packed weights that of the
# activations, to 16 bits in blocks of inputs; the numbers of torch's own paths differ from each other by as much.
ROUNDING = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
CASES: dict[str, tuple[str, Scheme | None]] = {
    "llama native": ("llama", None),
    "llama-tied native": ("llama-tied", None),
    "gpt_neox native": ("gpt_neox", None),
    "opt-350m native": ("opt-350m", None),
    "t5-gated native": ("t5-gated", None),
    "llama int4": ("llama", Scheme(4, 32)),
    "llama-tied int8": ("llama-tied", Scheme(8, 32, symmetric=False)),
    "gpt_neox int4": ("gpt_neox", Scheme(4, None, symmetric=False)),
    "bloom int8": ("bloom", Scheme(8, 32, form="int-quantized")),
    "t5 int8": ("t5", Scheme(8, None)),
    "t5-gated int4": ("t5-gated", Scheme(4, None)),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint and what transformers makes of it: logits for many rows and for few, and tokens."""

    folder: Path
    dtype: torch.dtype
    packed: bool
    prompts: tuple[dict[str, torch.Tensor], ...]
    logits: tuple[torch.Tensor, ...]
    tokens: torch.Tensor


@pytest.fixture(autouse=True)
def compiled(plain_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        load()
    except NoLibrary as error:
        pytest.skip(str(error))
    monkeypatch.setenv("OUTSIZE_KERNELS", "auto")


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    made: torch.Tensor = model.generate(input_ids=inputs["input_ids"], max_new_tokens=4, do_sample=False)
    return made


def prompts(encoder_decoder: bool) -> tuple[dict[str, torch.Tensor], ...]:
    """Eighteen rows, and five."""
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
    several = ({"input_ids": ids}, {"input_ids": ids[:1, :5]})
    return (
        tuple(one | {"decoder_input_ids": one["input_ids"][:, :4]} for one in several) if encoder_decoder else several
    )


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, scheme = CASES[request.param]
    arch, folder = wide(ARCHITECTURES[name]), tmp_path_factory.mktemp("model")
    if scheme is None:
        write_checkpoint(folder, arch.make_model())
        auto = "AutoModelForSeq2SeqLM" if arch.encoder_decoder else "AutoModelForCausalLM"
        model = getattr(transformers, auto).from_pretrained(folder)
    else:
        model = transformers_own(write_quantised(folder, arch.make_model(), scheme))
    inputs = prompts(arch.encoder_decoder)
    own = tuple(logits(model, one) for one in inputs)
    return Case(folder, arch.dtype, scheme is not None, inputs, own, generate(model, inputs[1]))


def wide(arch: Architecture) -> Architecture:
    """With rows that groups of 32 divide, which the kernels take."""
    return (
        replace(arch, config={**arch.config, "intermediate_size": 64}) if "intermediate_size" in arch.config else arch
    )


def weights_of(model: Any) -> list[torch.Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]


@pytest.mark.usefixtures("slow_drive")
@pytest.mark.parametrize("home", ["ram", "disk", "two GPUs, ram and disk"])
def test_within_rounding(case: Case, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with every_tier.load(case.folder, home, monkeypatch) as model:
        for inputs, want in zip(case.prompts, case.logits, strict=True):
            error = (logits(model, inputs) - want).abs().max() / want.abs().max()
            assert error <= ROUNDING[case.dtype], math.log2(error)
        assert torch.equal(generate(model, case.prompts[1]), case.tokens)
        if home == "ram":
            kinds = {type(weight) for weight in weights_of(model)}
            assert kinds == ({NativeWeight, PackedWeight} if case.packed else {NativeWeight})
            assert all(isinstance(weight, torch.nn.Parameter) for weight in weights_of(model))


def test_a_native_model_is_saved_and_read_as_ever(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].make_model()
    write_checkpoint(tmp_path / "model", model)
    with outsize.load(tmp_path / "model", no_gpu=True) as running:
        logits(running, prompts(False)[1])
        running.save_pretrained(tmp_path / "saved")
        for name, weight in running.state_dict().items():
            assert type(weight) is torch.Tensor
            assert torch.equal(weight, model.state_dict()[name])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again, prompts(False)[0]), logits(model, prompts(False)[0]))


def test_torch_alone_leaves_plain_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    with outsize.load(tmp_path, no_gpu=True) as model:
        logits(model, prompts(False)[1])
        assert {type(weight) for weight in weights_of(model)} == {torch.nn.Parameter}
