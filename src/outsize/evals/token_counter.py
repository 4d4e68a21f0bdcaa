"""Tokens of many texts, counted without importing transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TokenCounter:
    """Counts with a folder's ``tokenizer.json``. ``exact``: whether there is one that can be read."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = None
        try:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # noqa: BLE001  the library raises plain Exceptions
            return

    @property
    def exact(self) -> bool:
        """Whether ``count`` can be asked."""
        return self._tokenizer is not None

    def count(self, text: str) -> int:
        """Tokens of a text, the special ones included that the tokenizer adds; 0 of an empty one."""
        return len(self._tokenizer.encode(text).ids) if text else 0
