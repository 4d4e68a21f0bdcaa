"""fp8 and mxfp4 checkpoints as they are published, from every tier, against transformers' own load.

transformers multiplies the weights out where it finds no GPU; plain torch here gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, LLAMA, Architecture
from engine.every_tier import load
from engine.test_planned_bytes import check_run, plan_of
from published_formats import FP8, MXFP4, change_config, fp8, fused_experts, mxfp4, transformers_own, write_published
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import outsize
from outsize.engine.request import GenerateRequest
from outsize.errors import DamagedModel, OutsizeError, UsageError
from outsize.kernels.weights import PackedWeight
from outsize.models.files.folder import open_folder
from outsize.models.spec_json import spec_from_json, spec_to_json
from outsize.models.survey_cache import folder_spec

pytestmark = pytest.mark.usefixtures("slow_drive")
IDS = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def bfloat16(arch: Architecture) -> Any:
    return replace(arch, dtype=torch.bfloat16).make_model()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**INPUTS).logits
    return found


def generate(model: Any) -> torch.Tensor:
    made: torch.Tensor = model.generate(**INPUTS, max_new_tokens=4, do_sample=False)
    return made


def write_fp8(
    folder: Path, name: str = "llama", block: tuple[int, int] = (16, 16), scale: torch.dtype = torch.float32
) -> tuple[Path, Any]:
    """A checkpoint, and transformers' model of it."""
    stated = {**FP8, "weight_block_size": list(block)}
    write_published(folder, bfloat16(ARCHITECTURES[name]), fp8(block, scale), stated)
    return folder, transformers_own(folder)


def write_gpt_oss(folder: Path) -> tuple[Path, Any]:
    """A checkpoint, and transformers' model of it."""
    arch = ARCHITECTURES["gpt_oss"]
    model = replace(arch, config={**arch.config, "intermediate_size": 64}).make_model()  # blocks are of 32 inputs
    write_published(folder, model, mxfp4, MXFP4, fused_experts)
    return folder, transformers_own(folder)


def write_mxfp4(folder: Path) -> tuple[Path, Any]:
    """A Llama with matrices in mxfp4, as they are published for experts alone, and with what these stand for."""
    model = bfloat16(Architecture("llama", {**LLAMA, "intermediate_size": 96}))
    write_published(folder, model, mxfp4, MXFP4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers." in name and weight.dim() == 2:
                parts = mxfp4(weight)
                weight.copy_(convert_moe_packed_tensors(parts["_blocks"][None], parts["_scales"][None])[0].T)
    return folder, model


CASES: dict[str, Callable[[Path], tuple[Path, Any]]] = {
    "llama fp8": write_fp8,
    "qwen3 fp8, blocks that are cut short": lambda folder: write_fp8(folder, "qwen3", (128, 128)),
    "deepseek_v3 fp8 with bfloat16 scales": lambda folder: write_fp8(folder, "deepseek_v3", (4, 8), torch.bfloat16),
    "qwen3_moe fp8": lambda folder: write_fp8(folder, "qwen3_moe", (16, 8)),
    "llama mxfp4": write_mxfp4,
    "gpt_oss mxfp4": write_gpt_oss,
}


@pytest.mark.parametrize("home", ["ram", "disk", "two GPUs, ram and disk"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(case: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    folder, whole = CASES[case](tmp_path)
    with load(folder, home, monkeypatch) as model:
        assert torch.equal(logits(model), logits(whole))
        assert torch.equal(generate(model), generate(whole))


@pytest.mark.parametrize("case", ["qwen3 fp8, blocks that are cut short", "llama mxfp4"])
def test_the_compiled_kernels_are_as_near_as_rounding_lets_them(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = CASES[case](tmp_path)
    true = logits(whole.float())  # nothing is rounded but the weights
    with load(folder, "disk", monkeypatch) as model:
        assert (logits(model) - true).abs().max() < 0.03 * true.abs().max()


@pytest.mark.parametrize("case", ["llama fp8", "llama mxfp4", "qwen3_moe fp8", "gpt_oss mxfp4"])
def test_bytes_as_planned(case: str, tmp_path: Path) -> None:
    folder, _ = CASES[case](tmp_path)
    spec = folder_spec(open_folder(folder))
    form = case.split()[1]
    assert spec.formats == {form}
    assert spec_from_json(spec_to_json(spec)) == spec
    plan = plan_of(spec, "native", ram=0)
    stored = sum(tensor.nbytes for tensor in open_folder(folder).tensors)
    assert plan.usage["disk"].weights_bytes == spec.weight_bytes == stored
    assert {group.format for group in plan.groups} == {"native", form}
    if not any(module.experts for module in spec.modules):  # which rest in a cache
        check_run(folder, spec)


def test_weights_stay_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = write_fp8(tmp_path)
    with load(folder, "ram", monkeypatch) as model:
        logits(model)
        weight = model.model.layers[0].mlp.up_proj.weight
        assert isinstance(weight, PackedWeight)
        assert (weight.form, weight.dtype, weight.scale.dtype) == ("fp8", torch.bfloat16, torch.float32)
    for call in (outsize.load, outsize.plan):
        with pytest.raises(UsageError, match="quantised already; need int4, have fp8"):
            call(str(folder), weights="int4")


def test_scales_stay_as_they_are_where_the_configuration_asks_for_another_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    write_published(tmp_path, bfloat16(ARCHITECTURES["llama"]), fp8(), FP8, dtype="float32", torch_dtype="float32")
    tensor = next(t for t in folder_spec(open_folder(tmp_path)).blocks[0].tensors if t.packing is not None)
    assert (tensor.stored, tensor.runtime) == ("float32", "float32")
    with load(tmp_path, "disk", monkeypatch) as model:
        assert torch.equal(logits(model), logits(transformers_own(tmp_path).float()))


def test_a_list_of_modules_says_nothing_against_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published lists name modules as other versions of their code have them; data types are sure."""
    folder, whole = write_fp8(tmp_path)
    change_config(folder, modules_to_not_convert=["model.layers.0.mlp.up_proj"])
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    with load(folder, "ram", monkeypatch) as model:
        assert torch.equal(logits(model), logits(whole))


def test_what_is_damaged_is_one_error(tmp_path: Path) -> None:
    folder, _ = write_fp8(tmp_path)
    file, name = folder / "model.safetensors", "model.layers.2.mlp.up_proj.weight"
    whole = load_file(file)
    scale = whole[f"{name}_scale_inv"]
    for damaged, word in (
        ({k: v for k, v in whole.items() if k != f"{name}_scale_inv"}, f"lacks {name}_scale_inv"),
        (whole | {f"{name}_scale_inv": scale[:-1].clone()}, f"{name}_scale_inv is not as it must be"),
        (whole | {f"{name}_scale_inv": scale.to(torch.int32)}, "scales of int32"),
        (whole | {name: whole[name].view(torch.int8)}, "need float8_e4m3fn, have int8"),
    ):
        save_file(damaged, file)
        with pytest.raises(OutsizeError, match=word):
            outsize.load(folder, no_gpu=True)
    save_file(whole, file)
    change_config(folder, weight_block_size=[16, 0])
    with pytest.raises(DamagedModel, match="weight_block_size"):
        outsize.load(folder, no_gpu=True)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("case", ["llama fp8", "llama mxfp4"])
def test_numbers_that_are_none_end_a_generation(
    case: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", kernels)
    folder, _ = CASES[case](tmp_path)
    file = folder / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.2.mlp.down_proj.weight"
    if case == "llama fp8":
        whole[name].view(torch.uint8)[3, 5] = 0x7F
    else:
        whole[f"{name}_scales"][3, 1] = 255
    save_file(whole, file)
    with outsize.load(folder, no_gpu=True, context=32) as model:
        (result,) = model.outsize.generate([GenerateRequest("a", (5, 6, 7), 2)])
    assert "the model's logits are not finite, first in model.layers.2" in result.error
