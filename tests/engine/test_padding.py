"""Prompts of many lengths, of models for which padding before a prompt is not as if it were not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, BART, LLAMA, Architecture, write_checkpoint
from requests_alone import generated_alone

import outsize
from outsize.engine.prefix_cache import counts_padding
from outsize.engine.request import GenerateRequest
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec

CAUSAL = "AutoModelForCausalLM"
COUNTING: Mapping[str, Architecture] = {
    "positions of BART's decoder": Architecture(
        "bart", {**BART, "decoder_layers": 2, "is_encoder_decoder": False, "tie_word_embeddings": False}, auto=CAUSAL
    ),
    "windows of DeepSeek-V4": Architecture(
        "deepseek_v4",
        {
            **LLAMA,
            "num_key_value_heads": 1,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "q_lora_rank": 16,
            "o_lora_rank": 16,
            "o_groups": 4,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_topk": 8,
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        },
    ),
}


@pytest.mark.parametrize("name", COUNTING)
def test_tokens_are_those_of_one_by_one(name: str, tmp_path: Path) -> None:
    model = COUNTING[name].make_model()
    write_checkpoint(tmp_path, model)
    draw = torch.Generator().manual_seed(0)
    lengths = [9, 5, 11, 3, 9, 5, 13, 7]
    prompts = [tuple(torch.randint(3, 99, (n,), generator=draw).tolist()) for n in lengths]
    requests = [GenerateRequest(str(i), prompt, max_new_tokens=6) for i, prompt in enumerate(prompts)]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with outsize.load(tmp_path, no_gpu=True, weight_limits={"ram": 0}, context=32, batch=4) as ours:
        results = {result.id: result for result in ours.outsize.generate(requests)}
    for request in requests:
        assert not results[request.id].error
        assert results[request.id].tokens == generated_alone(plain, request)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "mpt"])
def test_others_are_padded(name: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].make_model()
    write_checkpoint(tmp_path, model)
    assert not counts_padding(model, folder_spec(open_folder(tmp_path)))
