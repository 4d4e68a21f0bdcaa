"""Greedy decoding of made-up token ids with any transformers model, under the clock."""

from __future__ import annotations

from typing import Any

from measure import PROMPT_TOKENS, Clock, forced, prompt


def import_everything(model: str) -> None:
    """Imports what a generation with this model's class imports, by doing one with two tiny layers of random weights.

    Modules that lie on a cold disk are nobody's load time, and take many seconds of it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    for name, value in {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "ffn_dim": 64,
        "intermediate_size": 64,
        "word_embed_proj_dim": 64,
    }.items():
        setattr(config, name, value)
    config.num_attention_heads = 2
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = 2
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    tiny = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tiny.generate(torch.tensor([[5, 6]]), max_new_tokens=1, do_sample=False)


def generate(
    model: Any, clock: Clock, new_tokens: int, prompt_tokens: int = PROMPT_TOKENS, *, made_up: bool = False
) -> None:
    """Exactly ``new_tokens`` tokens: random weights may well say end-of-text at once.

    ``made_up``: each is followed by a token that was decided before.
    """
    import torch

    ids = torch.tensor([prompt(model.config.vocab_size, prompt_tokens)])  # [1, tokens]
    with torch.inference_mode():
        if made_up:
            out = model(ids, use_cache=True)
            for token in forced(model.config.vocab_size, new_tokens):
                clock.token(int(out.logits[0, -1].argmax()))
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            return
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            streamer=clock,
        )
