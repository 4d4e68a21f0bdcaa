"""Generations with a clock beside them, from random tokens: what probes and benchmarks measure."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Timed:
    """One generation: seconds to its first token, the median of a further one, and tokens in the cache meanwhile."""

    first_s: float
    token_s: float
    past: int


def timed_generation(model: Any, prompt: int, tokens: int, batch: int = 1) -> Timed:
    """``tokens`` new tokens (at least 2) after each of ``batch`` prompts, greedy, past any end of sequence."""
    at: list[float] = []

    def clock(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        at.append(time.monotonic())
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    began = time.monotonic()
    with torch.inference_mode():
        model.generate(
            random_prompt(model, prompt, batch),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            stopping_criteria=[clock],
        )
    gaps = [two - one for one, two in zip([began, *at], at, strict=False)]
    return Timed(gaps[0], statistics.median(gaps[1:]), prompt + tokens // 2)


def fastest_of_two(model: Any, prompt: int, tokens: int) -> Timed:
    """The less disturbed of two generations; of one where the model is yet to be loaded."""
    loading = not model.outsize.stats.sweeps
    runs = [timed_generation(model, prompt, tokens) for _ in range(1 if loading else 2)]
    return replace(min(runs, key=lambda run: run.token_s), first_s=min(run.first_s for run in runs))


def random_prompt(model: Any, tokens: int, batch: int = 1) -> torch.Tensor:
    """Token ids [batch, tokens], the same each time."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, model.outsize.spec.vocab_size, (batch, tokens), generator=draw)
