"""Greedy decoding of made-up token ids with any transformers model, under the clock."""

from __future__ import annotations

from typing import Any

from measure import Clock, prompt


def generate(model: Any, clock: Clock, new_tokens: int) -> None:
    """Exactly ``new_tokens`` tokens: random weights may well say end-of-text at once."""
    import torch

    ids = torch.tensor([prompt(model.config.vocab_size)])  # [1, tokens]
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            streamer=clock,
        )
