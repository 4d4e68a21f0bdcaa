"""What lm-evaluation-harness asks to be generated, as requests to the model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from outsize.engine.request import GenerateRequest
from outsize.errors import UsageError

# Settings of a search with several beams, which is refused; with one they mean nothing.
OF_BEAMS = ("early_stopping", "length_penalty")
# What generation is like without these settings. A task may name them so, and ask for nothing.
NEUTRAL: Mapping[str, Any] = {
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
    "use_cache": True,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How transformers would draw where a task does not say: the model's own settings, or its library's."""

    top_p: float | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Manner:
    """How to generate, as a task asks for it. ``temperature`` 0: the likeliest tokens."""

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None


def manner_of(asked: Mapping[str, Any], default_tokens: int, eos: str | None, sampling: Sampling) -> Manner:
    """A task's generation settings, understood as the harness' own backends do; ``eos`` ends every answer.

    Raises UsageError for what cannot be done, by name.
    """
    settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(asked), default_tokens))
    stop = tuple(text for text in handle_stop_sequences(settings.pop("until"), eos) if text)
    tokens = settings.pop("max_gen_toks")
    sample, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 0.0) or 0.0)
    top_p, top_k = settings.pop("top_p", None), settings.pop("top_k", None)
    known = {**NEUTRAL, **{name: settings.get(name) for name in OF_BEAMS}}
    refused = sorted(name for name, value in settings.items() if value is not None and value != known.get(name, ...))
    if refused:
        named = ", ".join(f"{name}={settings[name]}" for name in refused)
        raise UsageError(f"the task asks for a generation that outsize does not have: {named}", remedy="--gen-kwargs")
    if tokens < 1 or temperature < 0:
        raise UsageError(f"max_gen_toks={tokens} and temperature={temperature} make no sense", remedy="--gen-kwargs")
    if not sample:
        return Manner(tokens, stop)
    if not temperature:
        raise UsageError("the task asks to sample without a temperature", remedy="--gen-kwargs temperature=1")
    top_p = sampling.top_p if top_p is None else float(top_p)
    top_k = sampling.top_k if top_k is None else int(top_k)
    return Manner(tokens, stop, temperature, top_p, top_k)


class Generations:
    """Prompts, each computed once where the likeliest tokens are asked for; drawn ones as often as they are asked.

    ``requests``: for the model; ``waiting``: of each, the numbers of the questions that it answers.
    """

    def __init__(self, asked: Sequence[tuple[tuple[int, ...], Manner]], seed: int) -> None:
        self.requests: list[GenerateRequest] = []
        self.waiting: list[list[int]] = []
        known: dict[tuple[tuple[int, ...], Manner], int] = {}
        drawn: Counter[tuple[tuple[int, ...], Manner]] = Counter()
        for number, (prompt, manner) in enumerate(asked):
            if (prompt, manner) in known:
                self.waiting[known[prompt, manner]].append(number)
                continue
            request = GenerateRequest(
                str(len(self.requests)),
                prompt,
                max_new_tokens=manner.max_new_tokens,
                temperature=manner.temperature,
                top_p=manner.top_p,
                top_k=manner.top_k,
                stop=manner.stop,
            )
            if manner.temperature:
                request = replace(request, seed=own_seed(seed, prompt, drawn[prompt, manner]))
                drawn[prompt, manner] += 1
            else:
                known[prompt, manner] = len(self.requests)
            self.requests.append(request)
            self.waiting.append([number])


def own_seed(seed: int, prompt: Sequence[int], time: int) -> int:
    """A seed for a prompt that was asked ``time`` times before, whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {time} {list(prompt)}".encode()).digest()[:7])
