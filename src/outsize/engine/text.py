"""Text from a model: transformers' own generation, watched by a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outsize.errors import ModelNotFound, UsageError

ROOM = 16  # tokens that a tokenizer may add of its own, where its vocabulary cannot be asked beforehand


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
        if self.temperature is not None and self.temperature <= 0:
            raise UsageError("a temperature must be above 0", have=str(self.temperature), remedy="none at all: greedy")
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise UsageError("top-p and top-k are for sampling", remedy="--temperature 1")


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


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises ModelNotFound where there is none that transformers can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelNotFound(
            f"{folder}: no tokenizer that transformers can read ({str(error).partition(chr(10))[0]})",
            remedy="put tokenizer.json and tokenizer_config.json beside config.json",
        ) from error


def count_tokens(folder: Path, prompt: str) -> int:
    """Tokens of a prompt, or an upper bound, without importing transformers: what the plan needs to know of it."""
    try:
        from tokenizers import Tokenizer

        return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids)
    except Exception:  # noqa: BLE001  the library raises plain Exceptions; the bound below is always right
        return len(prompt.encode()) + ROOM


def generate(
    model: Any, tokenizer: Any, prompt: str, settings: Settings, began: float, on_text: Callable[[str], None]
) -> Generation:
    """Generates from one prompt; ``on_text`` gets the text piece by piece. ``began``: monotonic time of the load."""
    import torch

    if settings.seed is not None:
        torch.manual_seed(settings.seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    if not inputs["input_ids"].numel():
        raise UsageError("the prompt is empty")
    inputs.pop("token_type_ids", None)  # some tokenizers make them, and no generating model takes them
    watch = Watch(tokenizer, lambda: model.outsize.stats.bytes_read, on_text)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    chosen: dict[str, Any] = {"do_sample": settings.temperature is not None, "num_beams": settings.beams}
    chosen.update({k: v for k, v in sampling.items() if v is not None or settings.temperature is None})
    if settings.beams == 1:
        chosen["streamer"] = watch
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        chosen["pad_token_id"] = tokenizer.eos_token_id
    with torch.inference_mode():
        out = model.generate(**inputs.to(model.device), max_new_tokens=settings.max_new_tokens, **chosen)
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
