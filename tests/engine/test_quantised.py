"""Quantised checkpoints as the compressed-tensors package writes them, from every tier, against transformers' own load.

transformers multiplies the weights out with the package (``dequantize``); plain torch here gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES
from engine.every_tier import load
from quantised import SCHEMES, Scheme, transformers_own, write_quantised

import outsize
from outsize.errors import OutsizeError, UsageError
from outsize.kernels.weights import PackedWeight
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec

pytestmark = pytest.mark.usefixtures("slow_drive")
CASES = {
    "llama int4": ("llama", Scheme(4, 16)),
    "llama-tied int8 asymmetric": ("llama-tied", Scheme(8, 16, symmetric=False)),
    "gpt_neox int8 bytes": ("gpt_neox", Scheme(8, None, symmetric=False, form="int-quantized")),
    "bloom int4 asymmetric": ("bloom", Scheme(4, 16, symmetric=False)),
    "t5 int4": ("t5", Scheme(4, 16)),
    "t5-gated int8": ("t5-gated", Scheme(8, 16)),
    "bart int4 per row": ("bart", Scheme(4, None)),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint and what transformers makes of it."""

    folder: Path
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    tokens: torch.Tensor


def prompt(encoder_decoder: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, "decoder_input_ids": ids[:, :4]} if encoder_decoder else inputs


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    made: torch.Tensor = model.generate(**given, max_new_tokens=4, do_sample=False)
    return made


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name, scheme = CASES[request.param]
    arch = ARCHITECTURES[name]
    folder = write_quantised(tmp_path_factory.mktemp("model"), arch.make_model(), scheme)
    model = transformers_own(folder)
    inputs = prompt(arch.encoder_decoder)
    return Case(folder, inputs, logits(model, inputs), generate(model, inputs))


@pytest.mark.parametrize("home", ["ram", "disk", "two GPUs, ram and disk"])
def test_the_same_bits(case: Case, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(case.folder, home, monkeypatch) as model:
        assert torch.equal(logits(model, case.inputs), case.logits)
        assert torch.equal(generate(model, case.inputs), case.tokens)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme(scheme: Scheme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantised(tmp_path, ARCHITECTURES["llama"].make_model(), scheme)
    inputs = prompt(False)
    want = logits(transformers_own(tmp_path), inputs)
    with load(tmp_path, "ram and disk", monkeypatch) as model:
        assert torch.equal(logits(model, inputs), want)


def test_two_schemes_and_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits for attention, 4 for the rest but the last layer, which stays as it is."""
    groups = {
        "group_0": Scheme(8, None).to_config(["re:.*self_attn.*"]),
        "group_1": Scheme(4, 16).to_config(["Linear"]),
    }
    model = ARCHITECTURES["llama"].make_model()
    write_quantised(tmp_path, model, groups=groups, ignore=["lm_head", "re:model.layers.3.*"])
    spec = folder_spec(open_folder(tmp_path))
    assert spec.formats == {"int4", "int8"}
    assert spec.weight_bytes == sum(t.nbytes for t in open_folder(tmp_path).tensors)
    assert all(tensor.packing is None for tensor in spec.blocks[3].tensors)
    inputs = prompt(False)
    with load(tmp_path, "disk", monkeypatch) as running:
        want = logits(transformers_own(tmp_path, dequantize=False), inputs)  # which takes one scheme for all
        assert torch.equal(logits(running, inputs), want)
    with pytest.raises(UsageError, match="int4 and int8"):
        outsize.load(tmp_path, weights="int4")


def test_scales_are_cast_to_the_type_that_the_configuration_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ARCHITECTURES["llama"].make_model()
    model.config.dtype = torch.bfloat16
    write_quantised(tmp_path, model)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    spec = folder_spec(open_folder(tmp_path))
    tensor = next(t for t in spec.blocks[0].tensors if t.packing is not None)
    assert (tensor.stored, tensor.runtime) == ("float32", "bfloat16")
    inputs = prompt(False)
    want = logits(transformers_own(tmp_path, dequantize=False), inputs)
    for home in ("ram", "disk"):
        with load(tmp_path, home, monkeypatch) as running:
            assert torch.equal(logits(running, inputs), want)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_format_that_it_is_in_may_be_asked_for(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantised(tmp_path, ARCHITECTURES["llama"].make_model(), Scheme(bits, 16))
    other = {4: "int8", 8: "int4"}[bits]
    with load(tmp_path, "ram", monkeypatch, weights=f"int{bits}") as model:
        assert model.outsize.plan.weights == f"int{bits}"
        logits(model, prompt(False))
    for call in (outsize.load, outsize.plan):
        with pytest.raises(UsageError, match=f"quantised already; need {other}, have int{bits}; try: --weights native"):
            call(str(tmp_path), weights=other)
    plan = outsize.plan(str(tmp_path))
    assert plan.weights == "native"
    assert not plan.remedies


def test_weights_stay_packed_and_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quantised(tmp_path / "model", ARCHITECTURES["llama"].make_model())
    with load(tmp_path / "model", "ram", monkeypatch) as model:
        logits(model, prompt(False))
        weight = model.model.layers[0].mlp.up_proj.weight
        assert isinstance(weight, PackedWeight)
        assert isinstance(weight, torch.nn.Parameter)
        assert (weight.shape, weight.dtype, weight.device.type) == ((48, 32), torch.float32, "cpu")
        assert model.state_dict()["model.layers.0.mlp.up_proj.weight"].shape == (48, 32)
        with pytest.raises(OutsizeError, match="copy the folder"):
            model.save_pretrained(tmp_path / "saved")
