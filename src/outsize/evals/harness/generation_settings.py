"""What lm-evaluation-harness asks to be generated, as requests to the model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from outsize.engine.request import GenerateRequest
from outsize.errors import UsageError

DEFAULT_NEW_TOKENS = 256  # where a task does not say, as for the harness' own backends
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


def request_of(asked: Mapping[str, Any], eos: str | None, top_p: float | None, top_k: int | None) -> GenerateRequest:
    """A task's generation settings as a request without a prompt, understood as the harness' own backends do.

    ``eos`` ends every answer; ``top_p`` and ``top_k``: how to draw where the task does not say. Raises UsageError for
    what cannot be done, by name.
    """
    settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(asked), DEFAULT_NEW_TOKENS))
    stop = tuple(text for text in handle_stop_sequences(settings.pop("until"), eos) if text)
    tokens = settings.pop("max_gen_toks")
    sample, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 0.0) or 0.0)
    own_p, own_k = settings.pop("top_p", None), settings.pop("top_k", None)
    known = {**NEUTRAL, **{name: settings.get(name) for name in OF_BEAMS}}
    refused = sorted(name for name, value in settings.items() if value is not None and value != known.get(name, ...))
    if refused:
        named = ", ".join(f"{name}={settings[name]}" for name in refused)
        raise UsageError(f"the task asks for a generation that outsize does not have: {named}", remedy="--gen-kwargs")
    if tokens < 1 or temperature < 0:
        raise UsageError(f"max_gen_toks={tokens} and temperature={temperature} make no sense", remedy="--gen-kwargs")
    if not sample:
        return GenerateRequest("", (), max_new_tokens=tokens, stop=stop)
    if not temperature:
        raise UsageError("the task asks to sample without a temperature", remedy="--gen-kwargs temperature=1")
    top_p, top_k = top_p if own_p is None else float(own_p), top_k if own_k is None else int(own_k)
    return GenerateRequest("", (), tokens, temperature, top_p, top_k, stop=stop)


def seeded(requests: Iterable[GenerateRequest], seed: int) -> Iterator[GenerateRequest]:
    """Drawn ones with a seed of their own, which depends on nothing but how often the same was asked before."""
    drawn: Counter[GenerateRequest] = Counter()
    for request in requests:
        if not request.temperature:
            yield request
            continue
        text = f"{seed} {drawn[request]} {list(request.prompt)}"
        drawn[request] += 1
        yield replace(request, seed=int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
