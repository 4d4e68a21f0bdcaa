"""Sequences that a dataset makes a model compute, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from outsize.engine.request import GenerateRequest, ScoreRequest, most_new_tokens
from outsize.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Want:
    """Tokens of one continuation, and the position in the row whose logits say how likely the first of them is."""

    request: int
    choice: int
    start: int
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Row:
    """A sequence to compute: the decoder's input, the encoder's where there is one, and all that is wanted of it."""

    tokens: tuple[int, ...]
    context: tuple[int, ...] = ()
    wants: list[Want] = field(default_factory=list)
    new_tokens: int = 0  # to be generated
    request: int = 0  # that it generates for

    @property
    def positions(self) -> list[int]:
        """Positions whose logits are wanted, ascending, each once."""
        return sorted({p for w in self.wants for p in range(w.start, w.start + len(w.tokens))})

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences."""
        return max(len(self.tokens), len(self.context))


def rows_of(requests: Sequence[ScoreRequest], errors: Sequence[str], start: int | None) -> list[Row]:
    """The sequences to compute, each once, and none that another one begins with.

    ``start``: the decoder's first token where the context goes to an encoder.
    """
    wanted: list[tuple[tuple[int, ...], tuple[int, ...], Want]] = []
    for number, (request, error) in enumerate(zip(requests, errors, strict=True)):
        for choice, tokens in enumerate(request.continuations if not error else ()):
            before = request.context if start is None else (start,)
            context = () if start is None else request.context
            want = Want(number, choice, len(before) - 1, tokens)
            wanted.append((context, (*before, *tokens[:-1]), want))
    wanted.sort(key=lambda one: one[:2])
    rows: list[Row] = []
    for context, tokens, want in reversed(wanted):
        last = rows[-1] if rows else None
        if last is not None and last.context == context and last.tokens[: len(tokens)] == tokens:
            last.wants.append(want)
        else:
            rows.append(Row(tokens, context, [want]))
    for row in rows:
        row.wants.sort(key=lambda want: want.start)
    return rows[::-1]


def unknown_token(tokens: Sequence[int], spec: ModelSpec) -> str:
    """That a token id is none of the model's, or nothing."""
    if min(tokens) < 0 or max(tokens) >= spec.vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < spec.vocab_size)
        return f"token {wrong} is none of the model's: they are 0..{spec.vocab_size - 1}"
    return ""


def too_long(tokens: int, spec: ModelSpec) -> str:
    """That a sequence has more tokens than the model has positions, or nothing."""
    if spec.max_positions is not None and tokens > spec.max_positions:
        return f"{tokens} tokens are more than the model's {spec.max_positions} positions"
    return ""


def refusal(request: ScoreRequest | GenerateRequest, spec: ModelSpec) -> str:
    """Why no memory is enough to compute a request, or nothing."""
    return _not_scored(request, spec) if isinstance(request, ScoreRequest) else _not_generated(request, spec)


def _not_scored(request: ScoreRequest, spec: ModelSpec) -> str:
    if not request.continuations:
        return "there is nothing to score"
    if not request.context:
        return "the context is empty: it needs one token at least"
    if not all(request.continuations):
        return "a continuation is empty"
    for tokens in (request.context, *request.continuations):
        if error := unknown_token(tokens, spec):
            return error
    return too_long(scored_tokens(request, spec), spec)


def scored_tokens(request: ScoreRequest, spec: ModelSpec) -> int:
    """Tokens of the longest sequence that scoring a request computes. Nothing comes after a continuation's last one."""
    longest = max(len(tokens) for tokens in request.continuations)
    before = len(request.context)
    return max(before, longest) if spec.encoder_decoder else before + longest - 1


def _not_generated(request: GenerateRequest, spec: ModelSpec) -> str:
    if not request.prompt:
        return "the prompt is empty"
    if request.max_new_tokens < 1:
        return f"max_new_tokens must be at least 1, not {request.max_new_tokens}"
    if request.temperature < 0:
        return f"a temperature must not be below 0, as {request.temperature} is"
    if error := unknown_token(request.prompt, spec) or too_long(len(request.prompt), spec):
        return error
    left = most_new_tokens(len(request.prompt), spec)
    if left is not None and request.max_new_tokens > left:
        both = f"{len(request.prompt)} tokens of the prompt and {request.max_new_tokens} new ones"
        return f"{both} are more than the model's {spec.max_positions} positions: at most {left} new ones fit"
    return ""


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[rows, longest], each filled up on the right with its own last token."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in rows])
