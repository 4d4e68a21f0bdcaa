"""Models whose caches are states that do not grow, and no keys and values."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import FalconMambaConfig, FalconMambaForCausalLM

import outsize


def test_a_model_of_linear_attention_alone_generates(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = FalconMambaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4, pad_token_id=0
    )
    FalconMambaForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(5, 12)[None]
    how = {"max_new_tokens": 4, "do_sample": False}
    want = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).generate(ids, **how)
    with outsize.load(tmp_path, weight_limits={"ram": "0"}, no_gpu=True) as model:
        assert torch.equal(model.generate(ids, **how), want)
