"""What a tokenizer.json may ask of memory, and how its library's errors are told.

The library obeys a file to the letter: text that a file pads to a billion tokens, or whose every letter it replaces by
a million others, takes all memory there is, and then aborts the process. So the few settings that multiply are bounded
before the file is loaded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel, OutsizeError, said
from outsize.models.files.small_files import TOKENIZER, read_settings

MOST_GROWTH = 1000  # characters that one may become
MOST_TOKENS = 1_000_000  # that a text is padded to
REMEDY = "another tokenizer.json: this one is damaged, or meant to do harm"
PANIC = "PanicException"  # of a library in Rust: a BaseException whose class cannot be imported


def check_tokenizer(folder: Path) -> None:
    """Raises DamagedModel for a tokenizer.json that is none, or whose settings multiply beyond all reason."""
    if not os.path.lexists(folder / TOKENIZER):
        return
    try:
        settings = read_settings(folder, TOKENIZER)
    except DamagedModel as error:
        raise type(error)(error.what, need=error.need, have=error.have, remedy=error.remedy or REMEDY) from error
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = _growth(settings.get(part))
        if growth > MOST_GROWTH:
            raise _refused(folder, f"its {part} makes {growth:.3g} characters of one", f"at most {MOST_GROWTH}")
    padding = settings.get("padding")
    if isinstance(padding, Mapping):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, Mapping) else None
        tokens = max(_number(fixed), _number(padding.get("pad_to_multiple_of")))
        if tokens > MOST_TOKENS:
            raise _refused(folder, f"it pads every text to {tokens:.3g} tokens", f"at most {MOST_TOKENS}")


def check_vocabulary(highest: int, embedding: Any) -> None:
    """Raises DamagedModel where a token has no row in the model's embedding."""
    rows = getattr(embedding, "num_embeddings", None)
    if isinstance(rows, int) and highest >= rows:
        raise DamagedModel(
            f"the tokenizer makes token {highest}, which the model does not have",
            need=f"tokens below {rows}",
            remedy="the tokenizer that belongs to the model",
        )


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Errors of a tokenizer's library, panics included, as DamagedModel."""
    try:
        yield
    except OutsizeError:
        raise
    except BaseException as error:
        if not is_failure(error) or isinstance(error, MemoryError):
            raise
        raise DamagedModel(f"the tokenizer fails: {said(error)}", remedy=REMEDY) from error


def is_failure(error: BaseException) -> bool:
    """Whether an error is one, and not somebody's wish to end the process."""
    return isinstance(error, Exception) or type(error).__name__ == PANIC


def _refused(folder: Path, what: str, need: str) -> DamagedModel:
    return DamagedModel(f"{folder / TOKENIZER}: {what}", need=need, remedy=REMEDY)


def _growth(part: Any) -> float:
    """Characters that one may become in a step of the tokenizer, or in a sequence of steps."""
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, Mapping):
        return 1.0
    content = part.get("content") if part.get("type") in ("Replace", "Prepend") else None
    replaced = part.get("replacement") if part.get("type") == "Metaspace" else None
    own = max(len(text) if isinstance(text, str) else 1 for text in (content, replaced, part.get("prepend")))
    return float(max(own, 1)) * math.prod(_growth(inner) for inner in part.values() if isinstance(inner, list))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
