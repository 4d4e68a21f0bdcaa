"""What models are measured with: text, and an image or a sound where they do nothing without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from outsize.models import tracing
from outsize.models.spec import ModelSpec
from outsize.models.tracing.measure import _layer_bytes

SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SPEECH = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def surveyed(model_type: str, architecture: str, dtype: str = "float32", **config: Any) -> ModelSpec:
    made: Any = transformers.CONFIG_MAPPING[model_type](architectures=[architecture], **config)
    made.dtype = getattr(torch, dtype)
    cls = tracing.model_class(made)
    tensors = tracing.config_tensors(made, cls)
    return tracing.survey(tracing.rehearse(made, cls, tensors, lambda a, b: True), model_type)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_experts_are_measured_in_any_float(dtype: str) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    spec = surveyed("mixtral", "MixtralForCausalLM", dtype, **SMALL, **experts)
    assert len(spec.blocks) == 2
    assert spec.workspace.bytes_for(1, 64) > 0


def test_a_model_that_hears() -> None:
    spec = surveyed("whisper", "WhisperForConditionalGeneration", max_source_positions=32, num_mel_bins=16, **SPEECH)
    cache = [module.cache for module in spec.modules if module.cache.per_token]
    assert [(c.per_token, c.fixed) for c in cache] == [(256, 256 * 32)] * 2  # every sound is as long as another


def test_a_model_that_wants_an_image() -> None:
    text = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2, "encoder_hidden_size": 32}
    config = {"text_config": {**SMALL, **text}, "vision_config": {**VISION, "image_size": 32, "patch_size": 8}}
    spec = surveyed("blip", "BlipForConditionalGeneration", **config)
    assert spec.parameters > 0


def test_experts_that_are_named_by_numbers_of_a_tensor() -> None:
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_experts": 4, "vocab_size": 99}
    spec = surveyed("switch_transformers", "SwitchTransformersForConditionalGeneration", **sizes)
    assert any("expert_3" in tensor.name for module in spec.modules for tensor in module.tensors)


def test_a_model_that_takes_codes_of_sound_with_its_text() -> None:
    codec = {"num_filters": 4, "hidden_size": 32, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16,
             "upsample_groups": 32, "num_quantizers": 2, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 48}  # fmt: skip
    config = {**SMALL, "num_codebooks": 2, "head_dim": 8, "ffn_dim": 48, "codec_config": codec,
              "audio_pad_token_id": 0, "pad_token_id": 0, "codebook_vocab_size": 64}  # fmt: skip
    spec = surveyed("kyutai_speech_to_text", "KyutaiSpeechToTextForConditionalGeneration", **config)
    assert spec.kv_bytes_per_token > 0


def test_a_model_that_takes_a_row_of_codes_for_each_codebook() -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    spec = surveyed("musicgen_decoder", "MusicgenForCausalLM", num_codebooks=2, pad_token_id=0, **sizes)
    assert len(spec.blocks) == 2


def test_tensors_that_are_split_into_parts_of_sizes_that_only_data_knows() -> None:
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "kv_channels": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    assert len(surveyed("jetmoe", "JetMoeForCausalLM", **sizes).blocks) == 2


def test_a_cache_of_a_kind_of_its_own_is_counted_as_a_whole() -> None:
    assert _layer_bytes(SimpleNamespace(states={0: torch.zeros(3), 1: torch.zeros(2)})) == [(20, 0, None)]


def test_positions_without_an_end() -> None:
    sizes = {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    assert surveyed("xlnet", "XLNetLMHeadModel", **sizes).max_positions is None


def test_a_table_that_is_used_as_a_whole_does_not_rest_on_disk() -> None:
    vision = {**VISION, "image_size": 32, "patch_size": 8}
    spec = surveyed("llava", "LlavaForConditionalGeneration", text_config={"model_type": "llama", **SMALL},
                    vision_config={"model_type": "siglip_vision_model", **vision})  # fmt: skip
    roles = {module.name: module.role for module in spec.modules}
    assert roles["model.language_model.embed_tokens"] == "embedding"
    assert {role for name, role in roles.items() if name.endswith("position_embedding")} == {"other"}
