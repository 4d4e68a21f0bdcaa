"""What is understood of a quantization_config, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from outsize.errors import DamagedModel, UnsupportedModel
from outsize.models.quantization import Quantisation, Scheme, read_quantisation

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
LINEAR = ("Linear", "Module", "object")


def read(weights: dict[str, Any] | None = None, group: dict[str, Any] | None = None, **stated: Any) -> Quantisation:
    """The quantisation of a configuration with one group, changed as asked."""
    one = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {}), **(group or {})}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": one},
        "ignore": ["lm_head"],
        **stated,
    }
    found = read_quantisation({"quantization_config": config})
    assert found is not None
    return found


def test_nothing_is_said() -> None:
    assert read_quantisation({}) is read_quantisation({"quantization_config": None}) is None


@pytest.mark.parametrize(
    ("weights", "form", "scheme"),
    [
        ({}, "pack-quantized", Scheme(4, 128, words=True, zero_points=False)),
        ({"symmetric": False}, "pack-quantized", Scheme(4, 128, words=True, zero_points=True)),
        ({"strategy": "channel", "group_size": None}, "pack-quantized", Scheme(4, None, words=True, zero_points=False)),
        ({"strategy": None, "group_size": -1}, "pack-quantized", Scheme(4, None, words=True, zero_points=False)),
        ({"num_bits": 8, "strategy": None}, "int-quantized", Scheme(8, 128, words=False, zero_points=False)),
        ({"actorder": "weight"}, "pack-quantized", Scheme(4, 128, words=True, zero_points=False)),
    ],
)
def test_schemes(weights: dict[str, Any], form: str, scheme: Scheme) -> None:
    assert read(weights, format=form).scheme_of("model.layers.0.fc", LINEAR) == scheme
    assert read(weights, {"format": form}, format="mixed-precision").scheme_of("fc", LINEAR) == scheme


def test_the_packing_of_a_weight() -> None:
    assert Scheme(4, None, words=True, zero_points=False).packing(96, "float16").group == 96
    assert Scheme(4, 32, words=False, zero_points=False).packing(96, "float16").bits == 8  # a byte each


@pytest.mark.parametrize("name", ["W4A16", "w8a16", "W4A16_ASYM"])
def test_presets(name: str) -> None:
    scheme = read(config_groups={name: ["Linear"]}).scheme_of("fc", LINEAR)
    assert scheme == Scheme(4 if "4" in name else 8, 128, words=True, zero_points="ASYM" in name)


def test_names_come_before_expressions_and_these_before_classes() -> None:
    groups = {
        "group_0": {"targets": ["Linear"], "weights": WEIGHTS},
        "group_1": {"targets": ["re:.*mlp"], "weights": WEIGHTS | {"num_bits": 8}},
        "group_2": {"targets": ["model.0.mlp.up"], "weights": WEIGHTS | {"group_size": 32}},
    }
    quantisation = read(config_groups=groups, ignore=["lm_head", "re:.*norm$", "Router"])

    def of(module: str, classes: tuple[str, ...] = LINEAR) -> tuple[int, int | None] | None:
        scheme = quantisation.scheme_of(module, classes)
        return None if scheme is None else (scheme.bits, scheme.group)

    assert of("model.0.attn.q") == (4, 128)
    assert of("model.0.mlp.down") == (8, 128)
    assert of("model.0.mlp.up") == (4, 32)
    assert of("lm_head") is None
    assert of("model.0.mlp.norm") is None
    assert of("model.0.gate", ("Router", "Linear")) is None
    assert of("model.embed", ("Embedding",)) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"quant_method": "gptq"}, "'gptq'"),
        ({"format": "float-quantized"}, "'float-quantized'"),
        ({"format": "nvfp4-pack-quantized"}, "'nvfp4-pack-quantized'"),
        ({"format": "marlin-24"}, "'marlin-24'"),
        ({"format": "mixed-precision"}, "'mixed-precision'"),
        ({"format": None}, "None"),
        ({"weights": {"type": "float", "num_bits": 8}}, "'float' with 8 bits"),
        ({"weights": {"num_bits": 3}}, "with 3 bits"),
        ({"weights": {"strategy": "tensor"}}, "'tensor'"),
        ({"weights": {"strategy": None, "group_size": None}}, "'tensor'"),
        ({"weights": {"strategy": "block"}}, "'block'"),
        ({"weights": {"dynamic": True}}, "dynamic"),
        ({"weights": {"actorder": "group"}}, "actorder 'group'"),
        ({"group": {"input_activations": {"num_bits": 8}}}, "input_activations"),
        ({"group": {"output_activations": {"num_bits": 8}}}, "output_activations"),
        ({"group": {"weights": None}}, "group_0 without weights"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ({"quantization_status": "frozen"}, "'frozen'"),
        ({"config_groups": {"FP8": ["Linear"]}}, "'FP8'"),
    ],
)
def test_what_is_refused_by_name(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModel, match=word):
        read(**change)


@pytest.mark.parametrize("quantised", [True, ["a"], {"bits": 4}])
def test_a_method_without_a_name(quantised: Any) -> None:
    with pytest.raises(UnsupportedModel, match="'unknown'"):
        read_quantisation({"quantization_config": quantised})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"config_groups": {}}, "config_groups"),
        ({"config_groups": ["Linear"]}, "config_groups"),
        ({"weights": {"group_size": 0}}, "group_size"),
        ({"weights": {"group_size": "128"}}, "group_size"),
        ({"ignore": "lm_head"}, "ignore"),
        ({"group": {"targets": [1]}}, "group_0"),
    ],
)
def test_what_makes_no_sense(change: dict[str, Any], word: str) -> None:
    with pytest.raises(DamagedModel, match=word):
        read(**change)


def test_an_expression_that_is_none() -> None:
    with pytest.raises(DamagedModel, match="regular expression"):
        read(ignore=["re:("]).scheme_of("fc", LINEAR)


def test_entries_that_say_nothing() -> None:
    quiet = {"sparsity_config": {"format": "dense", "ignore": ["x"]}, "transform_config": {"config_groups": {}}}
    assert read(**quiet, kv_cache_scheme=None).ignore == ("lm_head",)


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def test_fp8_and_mxfp4() -> None:
    skipped = {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"], "scale_fmt": "ue8m0"}
    found = read_quantisation({"quantization_config": {**FP8, **skipped, "weight_block_size": [64, 32]}})
    assert found == Quantisation(method="fp8", block=(64, 32))
    found = read_quantisation({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": None}})
    assert found == Quantisation(method="mxfp4")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fmt": "e5m2"}, "the fmt 'e5m2'"),
        ({"activation_scheme": "static"}, "the activation_scheme 'static'"),
        ({"weight_block_size": None}, "one scale for a whole weight"),
        ({"expert_dtype": "fp4"}, "experts in 'fp4'"),
    ],
)
def test_what_of_fp8_is_refused_by_name(change: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"of fp8 with {word}.*; try: the native checkpoint"):
        read_quantisation({"quantization_config": FP8 | change})


@pytest.mark.parametrize("block", [[128], [128, 0], [128, "128"], [128.0, 128], 128, [True, 128]])
def test_blocks_that_are_none(block: Any) -> None:
    with pytest.raises(DamagedModel, match="weight_block_size; need two numbers above 0"):
        read_quantisation({"quantization_config": FP8 | {"weight_block_size": block}})


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_modules_that_are_no_names(method: str) -> None:
    with pytest.raises(DamagedModel, match="modules_to_not_convert is no list of names"):
        read_quantisation({"quantization_config": FP8 | {"quant_method": method, "modules_to_not_convert": [1]}})
