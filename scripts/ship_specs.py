"""Writes the specs that come with the package.

python scripts/ship_specs.py FOLDER    the six first models (FOLDER holds t5-3b.json, gpt-j-6B.json, ...)
python scripts/ship_specs.py           the mixtures of experts

A mixture's configuration is the one that transformers has as its default, with the fields in which the published
config.json differs; its tensors are those that transformers itself would save, in the format in which they were
published. Nothing is guessed: a count that is not the published one to the digit is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from outsize.models import tracing
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.packed_tensors import merge, shapes_in
from outsize.models.formats import MX_GROUP
from outsize.models.quantization import read_quantisation
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.spec_json import spec_to_json

TARGET = Path(__file__).parent.parent / "src" / "outsize" / "models" / "specs"
IDS = {
    "t5-3b": "t5-3b",
    "gpt-j-6B": "EleutherAI/gpt-j-6B",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
    "opt-30b": "facebook/opt-30b",
    "opt-66b": "facebook/opt-66b",
    "bloom": "bigscience/bloom",
}


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MXFP4 = {"quant_method": "mxfp4"}


@dataclass(frozen=True)
class Mixture:
    """A published model: its id, model type, parameters, and the fields in which it differs from the defaults.

    Fields that change no shape and no cache (rotary scaling, tokens, dropout) are left out. ``quantised``: its
    quantization_config, less what it excludes. ``float32``: endings of the tensors that are in float32 there.
    ``tensors``, ``nbytes``: of the published checkpoint, without layers that predict further tokens; 0: not compared.
    """

    id: str
    model_type: str
    parameters: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    quantised: Mapping[str, Any] = field(default_factory=dict)
    float32: tuple[str, ...] = ()
    tensors: int = 0
    nbytes: int = 0


MIXTURES = {
    "mixtral-8x7b": Mixture(
        "mistralai/Mixtral-8x7B-v0.1",
        "mixtral",
        46_702_792_704,
        {"max_position_embeddings": 32_768},
        nbytes=93_405_585_408,
    ),
    "mixtral-8x22b": Mixture(
        "mistralai/Mixtral-8x22B-v0.1",
        "mixtral",
        140_620_634_112,
        {
            "hidden_size": 6144,
            "intermediate_size": 16_384,
            "num_attention_heads": 48,
            "num_hidden_layers": 56,
            "max_position_embeddings": 65_536,
        },
        nbytes=281_241_268_224,
    ),
    "qwen3-30b-a3b": Mixture(
        "Qwen/Qwen3-30B-A3B",
        "qwen3_moe",
        30_532_122_624,
        {"num_hidden_layers": 48, "head_dim": 128, "max_position_embeddings": 40_960},
        nbytes=61_064_245_248,
    ),
    "qwen3-235b-a22b": Mixture(
        "Qwen/Qwen3-235B-A22B",
        "qwen3_moe",
        235_093_634_560,
        {
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 1536,
            "num_attention_heads": 64,
            "num_hidden_layers": 94,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
        },
        nbytes=470_187_269_120,
    ),
    "qwen3-next-80b-a3b": Mixture(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3_next", 79_674_391_296, {"max_position_embeddings": 262_144}
    ),
    "gpt-oss-20b": Mixture(
        "openai/gpt-oss-20b",
        "gpt_oss",
        20_914_757_184,
        {"num_hidden_layers": 24, "num_local_experts": 32},
        MXFP4,
        tensors=459,
        nbytes=13_761_264_768,
    ),
    "gpt-oss-120b": Mixture("openai/gpt-oss-120b", "gpt_oss", 116_829_156_672, quantised=MXFP4, nbytes=65_248_815_744),
    "deepseek-v3": Mixture(
        "deepseek-ai/DeepSeek-V3",
        "deepseek_v3",
        671_026_419_200,
        {"max_position_embeddings": 163_840},
        FP8,
        float32=("e_score_correction_bias",),
        tensors=90_427,  # 91,991 less 1,564 of the layer that predicts a further token
    ),
    "glm-4.5-air": Mixture(
        "zai-org/GLM-4.5-Air", "glm4_moe", 106_852_251_264, {"head_dim": 128, "attention_bias": True}
    ),
    "minimax-m2": Mixture(
        "MiniMaxAI/MiniMax-M2",
        "minimax_m2",
        228_689_764_864,
        quantised=FP8,
        float32=("gate.weight", "e_score_correction_bias"),
        nbytes=230_121_630_720,
    ),
}


def spec_of(published: Mapping[str, Any], model_id: str) -> ModelSpec:
    """The spec of a configuration alone."""
    config = tracing.read_config(published)
    cls = tracing.model_class(config)
    tensors = tracing.config_tensors(config, cls)
    spec = tracing.survey(tracing.rehearse(config, cls, tensors, lambda a, b: True), model_id)
    return replace(spec, origins={})


def mixture_spec(mixture: Mixture) -> ModelSpec:
    """The spec of a mixture of experts. Raises ValueError where its counts are not those that were published."""
    published = transformers.CONFIG_MAPPING[mixture.model_type](dtype="bfloat16", **mixture.fields).to_dict()
    config = tracing.read_config(published)
    cls = tracing.model_class(config)
    tensors = checkpoint_tensors(config, cls, mixture)
    quantisation = read_quantisation({"quantization_config": mixture.quantised})
    merged = tensors if quantisation is None else merge(tensors, quantisation, shapes_in(None))
    skeleton = tracing.rehearse(config, cls, merged, lambda a, b: True, None, quantisation)
    spec = replace(tracing.survey(skeleton, mixture.id), origins={})
    for what, have, want in (
        ("parameters", spec.parameters, mixture.parameters),
        ("tensors", len(tensors), mixture.tensors),
        ("bytes", spec.weight_bytes, mixture.nbytes),
    ):
        if want and have != want:
            raise ValueError(f"{mixture.id}: {have:,} {what}, not {want:,} as published")
    return spec


def checkpoint_tensors(config: Any, cls: type[Any], mixture: Mixture) -> Sequence[StoredTensor]:
    """The tensors of a mixture's checkpoint, under the names that transformers saves them by."""
    with torch.device("meta"):
        model = cls._from_config(config, dtype=torch.bfloat16)
    saved = revert_weight_conversion(model, model.state_dict())
    native = (tensor_of(name, tracing.name_of(t.dtype), tuple(t.shape)) for name, t in saved.items())
    return [stored for tensor in native for stored in as_published(tensor, mixture)]


def as_published(tensor: StoredTensor, mixture: Mixture) -> Iterator[StoredTensor]:
    """What a tensor is stored as: the matrices of blocks in fp8, or experts in mxfp4, with their scales beside them."""
    name, shape, method = tensor.name, tensor.shape, mixture.quantised.get("quant_method")
    if name.endswith(mixture.float32):
        yield tensor_of(name, "float32", shape)
    elif method == "fp8" and "layers." in name and len(shape) == 2 and not name.endswith("gate.weight"):
        rows, columns = mixture.quantised["weight_block_size"]
        yield tensor_of(name, "float8_e4m3fn", shape)
        yield tensor_of(f"{name}_scale_inv", "float32", (-(-shape[0] // rows), -(-shape[1] // columns)))
    elif method == "mxfp4" and len(shape) == 3:
        experts, inputs, outputs = shape  # transformers' own way round
        groups = inputs // MX_GROUP
        yield tensor_of(f"{name}_blocks", "uint8", (experts, outputs, groups, MX_GROUP // 2))
        yield tensor_of(f"{name}_scales", "uint8", (experts, outputs, groups))
    else:
        yield tensor


def tensor_of(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor in no file."""
    return StoredTensor(name, dtype, shape, "", 0, prod(shape) * dtype_bytes(dtype))


def ship(stem: str, spec: ModelSpec) -> None:
    """Writes one file."""
    (TARGET / f"{stem.lower()}.json").write_text(spec_to_json(spec))
    counts = f"{spec.parameters:,} parameters, {spec.active_parameters:,} of them active"
    sys.stderr.write(f"{spec.id}: {counts}, in {len(spec.blocks)} blocks, {spec.weight_bytes:,} bytes\n")


def main() -> None:
    """One JSON file for each model."""
    if len(sys.argv) > 1:
        for stem, model_id in IDS.items():
            ship(stem, spec_of(json.loads((Path(sys.argv[1]) / f"{stem}.json").read_text()), model_id))
    else:
        for stem, mixture in MIXTURES.items():
            ship(stem, mixture_spec(mixture))


if __name__ == "__main__":
    main()
