"""What is asked for many sequences at once, and what comes of each. No torch: commands import it early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from outsize.models.spec import ModelSpec

Finish = Literal["eos", "stop", "length", ""]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely each continuation is, after the context. Token ids; nothing is added to them.

    The context has at least one token (a decoder-only model must have something to predict from; the encoder reads it
    in an encoder-decoder model), each continuation too.
    """

    id: str
    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Of each continuation: the sum of natural log-probabilities, its tokens, whether each was the likeliest.

    Or, with nothing of these, the ``error``.
    """

    id: str
    logprobs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    greedy: tuple[bool, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """New tokens after a prompt: the likeliest, or drawn where there is a temperature.

    ``seed``: a row draws with its own generator, so that its answer does not depend on the rows beside it. ``stop``:
    strings that end the answer, for which a tokenizer is needed. The presence and frequency penalties count new tokens
    alone, the repetition penalty those of the prompt too. ``logit_bias``: tokens, and what is added to their logits.
    """

    id: str
    prompt: tuple[int, ...]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The new tokens, without the end-of-sequence token; with a stop string up to the token that completes it.

    ``text``: where there was a tokenizer; cut before the stop string. Or the ``error``.
    """

    id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    finish: Finish = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class DatasetProgress:
    """How far a dataset is, since its beginning: requests done, of how many, sweeps, tokens computed, bytes read."""

    done: int
    rows: int
    sweeps: int
    tokens: int
    disk_bytes: int


def most_new_tokens(prompt_tokens: int, spec: ModelSpec) -> int | None:
    """New tokens that a model has positions for after a prompt, below 1 where it has none; None where it sets no end.

    The last new token takes no position, because nothing reads it. An encoder's prompt takes none of the decoder's.
    """
    positions = spec.max_positions
    if positions is None:
        return None
    if spec.encoder_decoder:
        return positions if prompt_tokens <= positions else 0
    return positions - prompt_tokens + 1 if prompt_tokens <= positions else 0


def is_text(value: Any) -> bool:
    """Whether it is a text that a tokenizer takes: JSON can hold halves of characters, which are none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
