"""Models whose caches are states that do not grow, and no keys and values."""

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
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_attention_generates(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(name, **{**SMALL, **MODELS[name]})
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    how = {"max_new_tokens": 4, "do_sample": False}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with outsize.load(tmp_path, weight_limits={"ram": "0"}, no_gpu=True) as model, torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
        assert torch.equal(model.generate(ids, **how), reference.generate(ids, **how))
