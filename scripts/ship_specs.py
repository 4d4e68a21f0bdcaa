"""Writes the specs that come with the package.

python scripts/ship_specs.py FOLDER    the six first models (FOLDER holds t5-3b.json, gpt-j-6B.json, ...)
python scripts/ship_specs.py           the mixtures of experts

A mixture's configuration is the one that transformers has as its default, with the fields in which the published
config.json differs. Nothing is guessed: a count that is not the published one to the digit is an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers

from outsize.models import tracing
from outsize.models.spec import ModelSpec
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


@dataclass(frozen=True)
class Mixture:
    """A published model: its id, model type, parameters, and the fields in which it differs from the defaults.

    Fields that change no shape and no cache (rotary scaling, tokens, dropout) are left out.
    """

    id: str
    model_type: str
    parameters: int
    fields: Mapping[str, Any] = field(default_factory=dict)


MIXTURES = {
    "mixtral-8x7b": Mixture(
        "mistralai/Mixtral-8x7B-v0.1", "mixtral", 46_702_792_704, {"max_position_embeddings": 32_768}
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
    ),
    "qwen3-30b-a3b": Mixture(
        "Qwen/Qwen3-30B-A3B",
        "qwen3_moe",
        30_532_122_624,
        {"num_hidden_layers": 48, "head_dim": 128, "max_position_embeddings": 40_960},
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
    ),
    "qwen3-next-80b-a3b": Mixture(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3_next", 79_674_391_296, {"max_position_embeddings": 262_144}
    ),
    "gpt-oss-20b": Mixture(
        "openai/gpt-oss-20b", "gpt_oss", 20_914_757_184, {"num_hidden_layers": 24, "num_local_experts": 32}
    ),
    "gpt-oss-120b": Mixture("openai/gpt-oss-120b", "gpt_oss", 116_829_156_672),
    "deepseek-v3": Mixture(
        "deepseek-ai/DeepSeek-V3", "deepseek_v3", 671_026_419_200, {"max_position_embeddings": 163_840}
    ),
    "glm-4.5-air": Mixture(
        "zai-org/GLM-4.5-Air", "glm4_moe", 106_852_251_264, {"head_dim": 128, "attention_bias": True}
    ),
    "minimax-m2": Mixture("MiniMaxAI/MiniMax-M2", "minimax_m2", 228_689_764_864),
}


def spec_of(published: Mapping[str, Any], model_id: str) -> ModelSpec:
    """The spec of a configuration alone."""
    config = tracing.read_config(published)
    cls = tracing.model_class(config)
    tensors = tracing.config_tensors(config, cls)
    spec = tracing.survey(tracing.rehearse(config, cls, tensors, lambda a, b: True), model_id)
    return replace(spec, origins={})


def mixture_spec(mixture: Mixture) -> ModelSpec:
    """The spec of a mixture of experts. Raises ValueError where its parameters are not those that were published."""
    config = transformers.CONFIG_MAPPING[mixture.model_type](dtype="bfloat16", **mixture.fields)
    spec = spec_of(config.to_dict(), mixture.id)
    if spec.parameters != mixture.parameters:
        raise ValueError(f"{mixture.id}: {spec.parameters:,} parameters, not {mixture.parameters:,} as published")
    return spec


def ship(stem: str, spec: ModelSpec) -> None:
    """Writes one file."""
    (TARGET / f"{stem.lower()}.json").write_text(spec_to_json(spec))
    counts = f"{spec.parameters:,} parameters, {spec.active_parameters:,} of them active"
    sys.stderr.write(f"{spec.id}: {counts}, in {len(spec.blocks)} blocks\n")


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
