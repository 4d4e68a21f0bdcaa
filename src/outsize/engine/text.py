"""Text from a model: transformers' own generation, watched by a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outsize.engine.request import most_new_tokens
from outsize.errors import OutsizeError, UnsupportedModel, UsageError, said
from outsize.models.files.tokenizer_limits import check_vocabulary, tokenizer_errors
from outsize.models.spec import ModelSpec

# What a generation_config.json may ask for beside the text, of which one is given.
PLAIN_OUTPUT = {
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to generate. Greedy unless a temperature is given; ``beams`` above 1 is a beam search."""

    max_new_tokens: int = 64
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError("the number of new tokens must be at least 1", have=str(self.max_new_tokens))
        if self.beams < 1:
            raise UsageError("the number of beams must be at least 1", have=str(self.beams))
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise UsageError(
                "a temperature must be a number above 0", have=str(self.temperature), remedy="none at all: greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("top-k must be at least 1", have=str(self.top_k), remedy="leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError("top-p must be above 0 and at most 1", have=str(self.top_p))
        if self.seed is not None:
            check_seed(self.seed)
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise UsageError("top-p and top-k are for sampling", remedy="--temperature 1")


def check_seed(seed: int) -> None:
    """Raises UsageError for a seed that torch does not take."""
    if not -(1 << 63) <= seed < 1 << 64:
        raise UsageError("a seed must fit 64 bits", have=str(seed))


@dataclass(frozen=True, slots=True)
class Generation:
    """What came out, and what it took. Seconds to the first token count from the beginning of the load."""

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    token_s: float  # mean of the tokens after the first; 0 where there is one
    disk_bytes_per_token: int
    peak_ram_bytes: int


class Watch:
    """A streamer in transformers' sense: gives text on as it comes, and notes when, and how much was read by then."""

    def __init__(self, tokenizer: Any, bytes_read: Callable[[], int], on_text: Callable[[str], None]) -> None:
        from transformers import TextStreamer

        class Streamer(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                on_text(text)

        self._text = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._bytes_read = bytes_read
        self.moments: list[tuple[float, int]] = []  # seconds, bytes read; the first is the prompt's

    def put(self, value: Any) -> None:
        """One more token; the prompt comes first."""
        self.moments.append((time.monotonic(), self._bytes_read()))
        self._text.put(value)

    def end(self) -> None:
        """The rest of the text."""
        self._text.end()


def fitting(settings: Settings, prompt_tokens: int, spec: ModelSpec, *, asked: bool) -> Settings:
    """The settings where prompt and answer have positions in the model; fewer new tokens where none were asked for.

    Raises UsageError.
    """
    positions, left = spec.max_positions, most_new_tokens(prompt_tokens, spec)
    if left is None:
        return settings
    if left < 1:
        raise UsageError(
            "the prompt is too long",
            need=f"at most {positions} tokens",
            have=f"{prompt_tokens}",
            remedy="a shorter one",
        )
    if settings.max_new_tokens <= left:
        return settings
    if asked:
        raise UsageError(
            f"{prompt_tokens} tokens of the prompt and {settings.max_new_tokens} new ones are too many",
            need=f"at most {positions}, the model's positions",
            remedy=f"--max-new-tokens {left}",
        )
    return replace(settings, max_new_tokens=left)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int],
    settings: Settings,
    began: float,
    on_text: Callable[[str], None],
) -> Generation:
    """Generates from one prompt; ``on_text`` gets the text piece by piece. ``began``: monotonic time of the load.

    ``prompt``: text, or its tokens, to which nothing is added.
    """
    import torch

    from outsize.engine.finite import Finite, NotFinite, first_bad_layer

    if not model.can_generate():
        raise UnsupportedModel(
            f"{type(model).__name__} generates no text",
            remedy="config.json's architectures should name a class such as LlamaForCausalLM",
        )
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    inputs = _inputs(model, tokenizer, prompt)
    settings = fitting(settings, int(inputs["input_ids"].shape[1]), model.outsize.spec, asked=True)
    watch = Watch(tokenizer, lambda: model.outsize.stats.bytes_read, on_text)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    chosen: dict[str, Any] = {"do_sample": settings.temperature is not None, "num_beams": settings.beams}
    chosen.update({k: v for k, v in sampling.items() if v is not None or settings.temperature is None})
    chosen.update(tokenizer=tokenizer, logits_processor=[Finite()], **PLAIN_OUTPUT)
    if settings.beams == 1:
        chosen["streamer"] = watch
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        chosen["pad_token_id"] = tokenizer.eos_token_id
    try:
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, **chosen)
    except NotFinite as error:
        raise error.at(first_bad_layer(model, inputs)) from None
    except (ValueError, TypeError, KeyError) as error:
        raise OutsizeError(
            f"transformers cannot generate as asked: {said(error)}",
            remedy="check generation_config.json and the options",
        ) from error
    prompt_tokens = int(inputs["input_ids"].shape[1])
    skipped = 1 if model.config.is_encoder_decoder else prompt_tokens  # the decoder begins with one token of its own
    text = tokenizer.decode(out[0, skipped:], skip_special_tokens=True)
    if settings.beams > 1:
        watch.moments = [(began, 0), (time.monotonic(), model.outsize.stats.bytes_read)]
        on_text(text)
    first, last = watch.moments[1], watch.moments[-1]
    further = len(watch.moments) - 2
    return Generation(
        text=text,
        prompt_tokens=prompt_tokens,
        new_tokens=int(out.shape[1]) - skipped,
        first_token_s=first[0] - began,
        token_s=(last[0] - first[0]) / further if further > 0 else 0.0,
        disk_bytes_per_token=(last[1] - first[1]) // further if further > 0 else 0,
        peak_ram_bytes=model.outsize.stats.peak_ram_bytes,
    )


def _inputs(model: Any, tokenizer: Any, prompt: str | Sequence[int]) -> Any:
    """The model's inputs, on its device."""
    with tokenizer_errors():
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors="pt")
        else:
            inputs = tokenizer.pad({"input_ids": [list(prompt)]}, padding=False, return_tensors="pt")
    if not inputs["input_ids"].numel():
        raise UsageError("the prompt is empty")
    check_vocabulary(int(inputs["input_ids"].max()), model.get_input_embeddings())
    inputs.pop("token_type_ids", None)  # some tokenizers make them, and no generating model takes them
    return inputs.to(model.device)
