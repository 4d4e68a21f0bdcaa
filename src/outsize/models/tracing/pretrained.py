"""The one door through which transformers reads a model's files: configuration, tokenizer, processor, generation.

Code in a model's folder never runs: ``trust_remote_code=False`` is said every time, because transformers asks on
standard input where it is left out. Every small file of the folder is checked before transformers opens any, and
nothing is looked for on the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import GenerationConfig

from outsize.errors import DamagedModel, ModelNotFound, OutsizeError, UntrustedModel, said
from outsize.models.files.small_files import GENERATION_CONFIG, check_small_files, read_settings
from outsize.models.files.tokenizer_limits import check_tokenizer, is_failure


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises ModelNotFound where there is none that transformers can read.

    Raises UntrustedModel for one that needs code of the folder, or files outside of it, and DamagedModel.
    """
    return _load(transformers.AutoTokenizer, folder, "tokenizer", "tokenizer.json and tokenizer_config.json")


def load_processor(folder: Path) -> Any:
    """The folder's processor (a tokenizer with what prepares images or sound). Raises as ``load_tokenizer``."""
    return _load(transformers.AutoProcessor, folder, "processor", "processor_config.json and tokenizer.json")


def load_generation_config(folder: Path) -> Any:
    """The folder's generation_config.json; None where there is none, or an empty file, as transformers has it.

    Raises DamagedModel or UntrustedModel.
    """
    path = folder / GENERATION_CONFIG
    if path.is_file() and path.stat().st_size == 0:
        return None
    settings = read_settings(folder, GENERATION_CONFIG)
    if not settings:
        return None
    try:
        found = GenerationConfig.from_dict(settings)
        _check_tokens(found)
        return found
    except Exception as error:  # as many ways to fail as it has fields
        raise DamagedModel(f"{path}: transformers cannot read it: {said(error)}") from error


def _check_tokens(found: Any) -> None:
    """Raises ValueError for ids that are no tokens of any model."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        value = getattr(found, name, None)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and (not isinstance(token, int) or not -1 <= token < 1 << 31):
                raise ValueError(f"{name} is {token!r}")


def _load(auto: Any, folder: Path, what: str, files: str) -> Any:
    check_small_files(folder)
    check_tokenizer(folder)
    if wants_code(read_settings(folder, "config.json"), auto.__name__) or wants_code(
        read_settings(folder, f"{what}_config.json"), auto.__name__
    ):
        remedy = "a model whose classes are in transformers itself"
        code = UntrustedModel(f"{folder}: its {what} is code in the folder, which is never run", remedy=remedy)
    else:
        code = None
    load: Callable[..., Any] = auto.from_pretrained
    try:
        return load(folder, local_files_only=True, trust_remote_code=False)
    except OutsizeError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if code is not None:
            raise code from error
        raise ModelNotFound(
            f"{folder}: no {what} that transformers can read ({said(error)})", remedy=f"put {files} beside config.json"
        ) from error


def wants_code(settings: Mapping[str, Any], auto: str) -> bool:
    """Whether settings name code for an auto class; where transformers has a class, that one is taken."""
    named = settings.get("auto_map")
    return bool(named.get(auto) if isinstance(named, Mapping) else named)
