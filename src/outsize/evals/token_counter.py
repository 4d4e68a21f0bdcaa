"""Tokens of many texts, counted without importing transformers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel
from outsize.models.files.small_files import TOKENIZER, check_small_files
from outsize.models.files.tokenizer_limits import check_tokenizer, tokenizer_errors


class TokenCounter:
    """Counts with a folder's ``tokenizer.json``. ``exact``: whether there is one that can be read.

    Raises UntrustedModel or DamagedModel for files that should not be opened at all.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = None
        check_small_files(folder)
        check_tokenizer(folder)
        if not (folder / TOKENIZER).is_file():
            return
        from tokenizers import Tokenizer

        with suppress(DamagedModel), tokenizer_errors():
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    @property
    def exact(self) -> bool:
        return self._tokenizer is not None

    def count(self, text: str) -> int:
        """Tokens of a text, the special ones included that the tokenizer adds; 0 of an empty one."""
        with tokenizer_errors():
            return len(self._tokenizer.encode(text).ids) if text else 0
