"""Texts of the harness into tokens, cut as its own backends do where a model takes fewer."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from outsize.engine.request import ScoreRequest
from outsize.errors import UsageError
from outsize.evals.requests import Encoder

log = logging.getLogger("lm_eval.outsize")


class Texts:
    """Texts for a model that takes ``most`` tokens: of a sequence, or of each of an encoder's and a decoder's."""

    def __init__(self, encoder: Encoder, most: int) -> None:
        self.encoder = encoder
        self.most = most
        self._cut = 0

    def pair(self, context: str, continuation: str) -> ScoreRequest:
        """The tokens of both. Raises UsageError as ``fitting``."""
        return self.fitting(*self.encoder.pair(context, continuation))

    def windows(self, text: str) -> list[ScoreRequest]:
        """A whole text as contexts and what comes after them, each token once; () for an empty one.

        Raises UsageError where the first token has none to stand before it.
        """
        if self.encoder.prefix is None:
            raise UsageError(
                "the tokenizer has no token to begin a text with", remedy="--prefix-token ID (prefix_token_id=ID)"
            )
        windows = get_rolling_token_windows(
            token_list=self.encoder.encode(text),
            prefix_token=self.encoder.prefix,
            max_seq_len=self.most,
            context_len=1,
        )
        return [self.fitting(*make_disjoint_window(window)) for window in windows]

    def prompt(self, text: str, new_tokens: int) -> tuple[int, ...]:
        """The last tokens of a prompt that leave room for the new ones.

        Raises UsageError where these alone are as many as the model takes, and for an empty prompt.
        """
        tokenizer, shared = self.encoder.tokenizer, not self.encoder.encoder_decoder
        begun = shared and tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        tokens = self.encoder.bare(text) if begun else list(self.encoder.prompt(text))
        room = self.most - new_tokens if shared else self.most
        if room < 1:
            raise UsageError(
                f"{new_tokens} new tokens leave no room for a prompt",
                have=f"{self.most} tokens in all",
                remedy=f"--gen-kwargs max_gen_toks={max(self.most // 2, 1)}",
            )
        if not tokens:
            raise UsageError("the prompt is empty")
        self._note(len(tokens), room)
        return tuple(tokens[-room:])

    def fitting(self, context: Sequence[int], continuation: Sequence[int]) -> ScoreRequest:
        """A pair with its context cut from the left to what the model takes.

        Of a decoder-only model both share the positions, and the last token needs none. Raises UsageError where there
        is nothing to score, nothing to score it from, or too much.
        """
        if not continuation:
            raise UsageError("a continuation has no tokens")
        if not context:
            raise UsageError(
                "a context is empty, and the tokenizer has no token to stand for that",
                remedy="--prefix-token ID (prefix_token_id=ID)",
            )
        if len(continuation) > self.most:
            raise UsageError(f"a continuation of {len(continuation)} tokens", need=f"{self.most} tokens or fewer")
        room = self.most if self.encoder.encoder_decoder else self.most + 1 - len(continuation)
        self._note(len(context), room)
        return ScoreRequest("", tuple(context[-room:]), (tuple(continuation),))

    def _note(self, tokens: int, room: int) -> None:
        """Says so where a text is cut; once, for a task that does it at all does it often."""
        if tokens <= room:
            return
        level = logging.DEBUG if self._cut else logging.WARNING
        self._cut += 1
        log.log(level, "a context of %d tokens is cut from the left to the %d that the model takes", tokens, room)
