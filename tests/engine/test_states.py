"""Models whose caches are states that do not grow, in all layers or in some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import outsize

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 4, "pad_token_id": 0, "eos_token_id": 2}
MODELS: dict[str, dict[str, Any]] = {
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "rwkv": {"rescale_every": 2},  # divides weights of its later layers in its first forward pass
    "xlstm": {"hidden_size": 64, "num_heads": 2, "qk_dim_factor": 1.0, "v_dim_factor": 1.0, "chunk_size": 8},
    "nemotron_h": {  # adds up what its experts give in float32, and rounds once
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 3,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_states_generates(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(name, **{**SMALL, **MODELS[name]})
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    how = {"max_new_tokens": 4, "do_sample": False}
    eager = {"experts_implementation": "eager"} if name == "nemotron_h" else {}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **eager)
    with outsize.load(tmp_path, weight_limits={"ram": "0"}, no_gpu=True) as model, torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
        assert torch.equal(model.generate(ids, **how), reference.generate(ids, **how))
