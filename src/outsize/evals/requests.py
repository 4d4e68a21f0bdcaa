"""Text into the tokens of requests, as lm-evaluation-harness does it, so that figures can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outsize.engine.chat_template import as_messages, chat_tokens
from outsize.engine.request import ScoreRequest, most_new_tokens
from outsize.models.files.tokenizer_limits import tokenizer_errors
from outsize.models.spec import ModelSpec


class Encoder:
    """A tokenizer, seen from requests. ``encoder_decoder``: contexts go to an encoder, continuations to a decoder.

    ``prefix``: the token that stands for an empty context, if not the tokenizer's first-of-sequence token, else its
    last one, else the model's; None where there is none at all. ``spec``: of the model, whose positions bound what is
    generated where nobody asked for a number.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        *,
        encoder_decoder: bool,
        prefix: int | None = None,
        spec: ModelSpec | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._spec = spec
        self.encoder_decoder = encoder_decoder
        self.prefix = prefix_token(tokenizer, config) if prefix is None else prefix
        self._prefix_text = "" if self.prefix is None else tokenizer.decode([self.prefix])

    def encode(self, text: str) -> list[int]:
        """Tokens with the special ones that the tokenizer adds, but none before a text that begins with it already."""
        if self._prefix_text and text.startswith(self._prefix_text):
            return self.bare(text)
        with tokenizer_errors():
            return list(self.tokenizer.encode(text, verbose=False))

    def prompt(self, text: str) -> tuple[int, ...]:
        """Tokens of a prompt as the tokenizer makes them by itself, which is what ``outsize run`` gives the model."""
        with tokenizer_errors():
            return tuple(self.tokenizer.encode(text, verbose=False))

    def new_tokens(self, prompt: Sequence[int], usual: int) -> int:
        """New tokens where none were asked for: the usual number, or as many as the model has positions for.

        One at least: a prompt that leaves no position is refused for itself.
        """
        left = None if self._spec is None else most_new_tokens(len(prompt), self._spec)
        return usual if left is None else max(min(usual, left), 1)

    def chat(self, messages: Any) -> tuple[int, ...]:
        """Tokens of a conversation, by the model's chat template. Raises UsageError for messages that are none."""
        return chat_tokens(self.tokenizer, as_messages(messages))

    def bare(self, text: str) -> list[int]:
        with tokenizer_errors():
            return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what comes after it.

        A decoder-only model's are encoded together and split at the context's own length, its trailing blanks being the
        continuation's: so words at the border are tokenised as in running text. An encoder-decoder model's are
        encoded apart. An empty context is the prefix token.
        """
        blanks = len(context) - len(context.rstrip())
        if blanks and context.rstrip():
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        if not context.rstrip() and not self.encoder_decoder:
            context, continuation = "", context + continuation
        if not context:
            tokens = self.bare(continuation)
            if tokens[:1] == [self.prefix]:
                return tokens[:1], tokens[1:]
            return ([] if self.prefix is None else [self.prefix]), tokens
        if self.encoder_decoder:
            return self.encode(context), self.bare(continuation)
        before = self.encode(context)
        return before, self.encode(context + continuation)[len(before) :]

    def score_request(self, key: str, context: str, choices: Sequence[str]) -> ScoreRequest | str:
        """A request for all choices of a context, whose own tokens no choice changes; or why there is none."""
        pairs = [self.pair(context, choice) for choice in choices]
        for choice, (_, tokens) in zip(choices, pairs, strict=True):
            if not tokens:
                return f"the choice {choice!r} has no tokens"
        if not pairs[0][0]:
            return "the context is empty, and the tokenizer has no token to stand for that"
        return ScoreRequest(key, tuple(pairs[0][0]), tuple(tuple(tokens) for _, tokens in pairs))


def prefix_token(tokenizer: Any, config: Any) -> int | None:
    """The token that stands for an empty context."""
    for holder in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(holder, name, None)
            if isinstance(token, list):
                token = token[0] if token else None
            if token is not None:
                return int(token)
    return None
