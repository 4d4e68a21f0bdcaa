"""Tokens into text as they come: whole characters only, and nothing that a stop string may still take away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for the first bytes of a character


class TextStream:
    """The text of one answer. ``stopped``: a stop string has come; it and all after it are left out.

    ``keep_special``: special tokens are text too, which tool calls of some models are made of.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, keep_special: bool = False) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._skip = not keep_special
        self._tokens: list[int] = []
        self._before = self._read = 0  # tokens whose text a decoder needs before the next ones; and those given out
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain now; often nothing."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._before : self._read])
        text = self._decode(self._tokens[self._before :])
        if text.endswith(BROKEN) or len(text) <= len(before):
            return ""
        self._before, self._read = self._read, len(self._tokens)
        return self._release(text[len(before) :])

    def end(self) -> str:
        """The rest."""
        before = self._decode(self._tokens[self._before : self._read])
        text = self._decode(self._tokens[self._before :])[len(before) :]
        self._before = self._read = len(self._tokens)
        certain = self._release(text)
        rest, self._held = self._held, ""
        return certain + rest

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=self._skip)) if tokens else ""

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Characters of the text's end with which the stop string may begin."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
