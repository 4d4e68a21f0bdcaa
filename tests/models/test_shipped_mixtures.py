"""The shipped specs of mixtures of experts, held against what was published of them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from outsize.models.resolve import shipped_spec
from outsize.models.spec import ModelSpec

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Parameters; those that a token uses; blocks; those with routed experts; experts; used ones; an expert's matrices.
PUBLISHED = {
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, 12_879_925_248, 32, 32, 8, 2, 3 * 4096 * 14_336),
    "mistralai/Mixtral-8x22B-v0.1": (140_620_634_112, 39_152_031_744, 56, 56, 8, 2, 3 * 6144 * 16_384),
    "Qwen/Qwen3-30B-A3B": (30_532_122_624, 3_353_032_704, 48, 48, 128, 8, 3 * 2048 * 768),
    "Qwen/Qwen3-235B-A22B": (235_093_634_560, 22_190_763_520, 94, 94, 128, 8, 3 * 4096 * 1536),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (79_674_391_296, 3_874_929_408, 48, 48, 512, 10, 3 * 2048 * 512),
    "openai/gpt-oss-20b": (20_914_757_184, 4_193_246_784, 24, 24, 32, 4, 3 * 2880 * 2880),
    "openai/gpt-oss-120b": (116_829_156_672, 5_750_551_872, 36, 36, 128, 4, 3 * 2880 * 2880),
    "deepseek-ai/DeepSeek-V3": (671_026_419_200, 37_552_297_472, 61, 58, 256, 8, 3 * 7168 * 2048),
    "zai-org/GLM-4.5-Air": (106_852_251_264, 13_424_129_664, 46, 45, 128, 8, 3 * 4096 * 1408),
    "MiniMaxAI/MiniMax-M2": (228_689_764_864, 11_030_553_088, 62, 62, 256, 8, 3 * 3072 * 1536),
}
BYTES = {
    "mistralai/Mixtral-8x7B-v0.1": ("native", 93_405_585_408),
    "mistralai/Mixtral-8x22B-v0.1": ("native", 281_241_268_224),
    "Qwen/Qwen3-30B-A3B": ("native", 61_064_245_248),
    "Qwen/Qwen3-235B-A22B": ("native", 470_187_269_120),
    "openai/gpt-oss-20b": ("mxfp4", 13_761_264_768),
    "openai/gpt-oss-120b": ("mxfp4", 65_248_815_744),
    "deepseek-ai/DeepSeek-V3": ("fp8", 673_150_611_808),  # 688.6 GB less the layer that predicts a further token
    "MiniMaxAI/MiniMax-M2": ("fp8", 230_121_630_720),
}


def shipped(name: str) -> ModelSpec:
    spec = shipped_spec(name)
    assert spec is not None
    return spec


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_to_the_digit(name: str) -> None:
    parameters, active, blocks, layers, experts, per_token, matrices = PUBLISHED[name]
    spec = shipped(name)
    routed = [module for module in spec.modules if module.experts]
    assert (spec.id, spec.parameters, spec.active_parameters) == (name, parameters, active)
    assert (len(spec.blocks), len(routed)) == (blocks, layers)
    assert {(module.experts, module.per_token) for module in routed} == {(experts, per_token)}
    assert {sum(t.elements for t in module.tensors) for module in routed} == {experts * matrices}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_to_the_digit_as_published(name: str) -> None:
    form, nbytes = BYTES[name]
    spec = shipped(name)
    assert (spec.formats or {"native"}, spec.weight_bytes) == ({form}, nbytes)
    routed = next(module for module in spec.modules if module.experts)
    apart = form != "mxfp4"  # which is stored as transformers holds it: two tensors for all experts of a layer
    assert sum(t.matrices for t in routed.tensors) == (3 * routed.experts if apart else 2)


def test_latent_caches_are_what_the_runtime_allocates() -> None:
    assert shipped("deepseek-ai/DeepSeek-V3").kv_bytes_per_token == 61 * (512 + 64) * 2
    assert shipped("Qwen/Qwen3-30B-A3B").kv_bytes_per_token == 48 * 2 * 4 * 128 * 2


def test_the_shipped_ones_are_what_the_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ship_specs = importlib.import_module("ship_specs")
    assert {mixture.id for mixture in ship_specs.MIXTURES.values()} == set(PUBLISHED)
    mixture = ship_specs.MIXTURES["gpt-oss-20b"]
    made, kept = ship_specs.mixture_spec(mixture), shipped(mixture.id)
    assert [(m.name, m.tensors, m.experts) for m in made.modules] == [
        (m.name, m.tensors, m.experts) for m in kept.modules
    ]


def test_a_count_that_is_not_the_published_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ship_specs = importlib.import_module("ship_specs")
    with pytest.raises(ValueError, match="as published"):
        ship_specs.mixture_spec(replace(ship_specs.MIXTURES["gpt-oss-20b"], parameters=20_914_757_183))
