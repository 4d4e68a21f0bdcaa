"""Requests made from numbers, and what transformers alone makes of each, one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import ARCHITECTURES

from outsize.engine.request import GenerateRequest, ScoreRequest

SPOILT = 13  # a token; see spoilt


def tokens(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, 99) for _ in range(rng.randint(least, most)))


def score_requests(count: int = 12, *, shared: int = 20, seed: int = 0) -> list[ScoreRequest]:
    """Three continuations each; most contexts begin with the same tokens, every fourth does not."""
    rng = random.Random(seed)
    examples = tokens(rng, shared, shared)
    return [
        ScoreRequest(
            str(i),
            (*(examples if i % 4 else ()), *tokens(rng, 1, 12)),
            (tokens(rng, 1, 1), tokens(rng, 2, 9), tokens(rng, 2, 9)),
        )
        for i in range(count)
    ]


def generate_requests(count: int = 12, *, new: int = 5, shared: int = 20, seed: int = 0) -> list[GenerateRequest]:
    """Every other one is drawn, in several ways."""
    rng = random.Random(seed)
    examples = tokens(rng, shared, shared)
    return [
        GenerateRequest(
            str(i),
            (*(examples if i % 4 else ()), *tokens(rng, 1, 12)),
            max_new_tokens=new,
            temperature=1.5 * (i % 2),
            top_k=20 if i % 4 == 1 else None,
            top_p=0.9 if i % 4 == 3 else None,
            seed=i,
        )
        for i in range(count)
    ]


def plain_model(name: str, folder: Path) -> Any:
    """transformers' own."""
    auto = "AutoModelForSeq2SeqLM" if ARCHITECTURES[name].encoder_decoder else "AutoModelForCausalLM"
    return getattr(transformers, auto).from_pretrained(folder)


def scored_alone(model: Any, context: tuple[int, ...], continuation: tuple[int, ...]) -> tuple[float, bool]:
    """Log-probability and whether it is greedy, from one plain forward pass."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            decoder = torch.tensor([[start, *continuation[:-1]]])
            logits = model(input_ids=torch.tensor([context]), decoder_input_ids=decoder).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*context, *continuation[:-1]]])).logits[0, len(context) - 1 :]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    likeliest = logits.argmax(dim=-1).tolist() == list(continuation)
    return sum(logprobs[i, token].item() for i, token in enumerate(continuation)), likeliest


def generated_alone(model: Any, request: GenerateRequest) -> tuple[int, ...]:
    """New tokens of one plain ``generate``, up to the end of the sequence."""
    options: dict[str, Any] = {"do_sample": False}
    if request.temperature:
        torch.manual_seed(request.seed)
        options = {
            "do_sample": True,
            "temperature": request.temperature,
            "top_k": request.top_k or 0,
            "top_p": request.top_p or 1.0,
        }
    ids = torch.tensor([request.prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, **options)
    new = out[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()
    return tuple(new[: new.index(2)] if 2 in new else new)


@contextmanager
def spoilt(model: Any) -> Iterator[None]:
    """Sequences of which a token is SPOILT have embeddings that are no numbers."""

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        wrong = (args[0] == SPOILT).any(dim=-1)
        return torch.where(wrong[:, None, None], torch.nan, output)

    hook = model.model.embed_tokens.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()
