"""Answers of a given form: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from outsize.serve.problems import Problem

MOST_SCHEMA = 1 << 16  # characters


class Grammars:
    """Makes what keeps an answer to a form, for one tokenizer.

    ``vocabulary``: of the model's scores; ``ends``: tokens at an answer's end.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, list(ends)

    def for_json(self, schema: dict[str, Any] | None) -> Callable[[], Any]:
        """A processor for JSON, of a schema if there is one. Raises Problem for a schema that cannot be kept."""
        try:
            import llguidance
        except ImportError:
            raise Problem(400, "response_format needs the package llguidance on the server") from None
        text = json.dumps({"type": "object"} if schema is None else schema)
        if len(text) > MOST_SCHEMA:
            raise Problem(400, f"the schema is too long; need at most {MOST_SCHEMA} characters, have {len(text)}")
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text)
            tokens = self._tokens
            wrong = llguidance.LLMatcher(tokens, grammar).get_error()
        except Exception as error:  # a library in Rust: whatever it does not like
            raise Problem(400, f"this schema cannot be kept to: {error}", param="response_format") from error
        if wrong:
            raise Problem(400, f"this schema cannot be kept to: {wrong}", param="response_format")
        return lambda: Form(llguidance.LLMatcher(tokens, grammar), self._vocabulary)

    @cached_property
    def _tokens(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends or None)


class Form:
    """A processor in transformers' form: leaves one sequence's scores [1, vocabulary] to tokens that keep to a form."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._seen: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, others at minus infinity."""
        if self._seen is not None:
            self._matcher.consume_tokens(input_ids[0, self._seen :].tolist())
        self._seen = input_ids.shape[1]
        kept = scores.masked_fill(~self._allowed().to(scores.device), float("-inf"))
        return kept if bool(torch.isfinite(kept.max())) else scores

    def _allowed(self) -> torch.Tensor:
        """Bool [vocabulary], from a bit for each token.

        The library's own function for that compiles itself first, for many seconds.
        """
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (words.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        return bits.flatten()[: self._vocabulary].bool()
