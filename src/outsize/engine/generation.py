"""New tokens for many prompts: transformers' own generation, one sweep for a token of each."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from outsize.engine.batching import Batch
from outsize.engine.dataset_job import Work
from outsize.engine.finite import NOT_FINITE
from outsize.engine.prefix_cache import prefix_cache
from outsize.engine.request import GenerateRequest, GenerateResult
from outsize.engine.sampling import Draw, End
from outsize.engine.sequence import Row, padded, refusal
from outsize.engine.sweep import Sweep
from outsize.engine.text import PLAIN_OUTPUT
from outsize.errors import UsageError
from outsize.models.spec import ModelSpec
from outsize.models.tracing.cache_argument import with_cache
from outsize.planner.batches import Shape
from outsize.planner.plan import Plan


def end_tokens(model: Any) -> frozenset[int]:
    """All tokens that end an answer of a model."""
    eos = model.generation_config.eos_token_id
    return frozenset(() if eos is None else eos if isinstance(eos, list) else (eos,))


def generate_with(
    model: Any, tokenizer: Any, inputs: Mapping[str, Any], new_tokens: int, draw: Draw, end: StoppingCriteria
) -> torch.Tensor:
    """transformers' own greedy loop, in which ``draw`` settles each row's token and ``end`` its end: [rows, tokens]."""
    settings = model.generation_config
    pad = settings.pad_token_id
    return model.generate(  # type: ignore[no-any-return]
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=min(end_tokens(model), default=0) if pad is None else pad,
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([end]),
        tokenizer=tokenizer,
        **PLAIN_OUTPUT,
    )


class Generating(Work):
    """Generates for requests with a model. ``tokenizer``: for stop strings, and for the text of results."""

    def __init__(
        self,
        model: Any,
        spec: ModelSpec,
        plan: Plan,
        sweep: Sweep,
        requests: Sequence[GenerateRequest],
        tokenizer: Any = None,
    ) -> None:
        if tokenizer is None and any(request.stop for request in requests):
            raise UsageError("stop strings need a tokenizer", remedy="generate(requests, tokenizer=...)")
        super().__init__(model, spec, plan, sweep, requests)
        self._tokenizer = tokenizer
        self.errors = [self._why_not(request) for request in requests]
        rows = [
            Row(request.prompt, new_tokens=request.max_new_tokens, request=number)
            for number, request in enumerate(requests)
            if not self.errors[number]
        ]
        rows.sort(key=lambda row: row.tokens)
        # Without positions among its inputs, a model may take the padding before a prompt for tokens.
        gaps = "position_ids" in inspect.signature(model.forward).parameters
        self.groups = self.packer.for_generating(rows, gaps=gaps)

    def refused(self) -> Iterator[GenerateResult]:
        """Results of requests that are not computed at all."""
        for request, error in zip(self._requests, self.errors, strict=True):
            if error:
                yield GenerateResult(request.id, error=error)

    def tokens_of(self, request: GenerateRequest) -> Sequence[int]:
        """The prompt."""
        return request.prompt

    def compute(self, batch: Batch) -> list[GenerateResult]:
        """Generates until every row is at its own end."""
        requests = [self._requests[row.request] for row in batch.rows]
        inputs = self._inputs(batch)
        new_tokens, encoder_decoder = batch.shape.new_tokens, self.spec.encoder_decoder
        self._sweep.context.tokens = new_tokens + (1 if encoder_decoder else inputs["input_ids"].shape[1])
        begin = 1 if self.spec.encoder_decoder else inputs["input_ids"].shape[1]
        stop_strings = tuple(self.model.generation_config.stop_strings or ())
        draw, end = Draw(requests, begin), End(requests, self._tokenizer, begin, stop_strings)
        end.failed = draw.failed
        out = generate_with(self.model, self._tokenizer, inputs, batch.shape.new_tokens, draw, end)
        ends = end_tokens(self.model)
        self.tokens += out.shape[0] * (out.shape[1] - begin)
        return [self._result(r, n, draw, end, out[n, begin:].tolist(), ends) for n, r in enumerate(requests)]

    def finish(self, batch: Batch, value: list[GenerateResult]) -> Iterator[GenerateResult]:
        """All of the micro-batch."""
        yield from value

    def fail(self, row: Row, error: str) -> Iterator[GenerateResult]:
        """One prompt."""
        yield GenerateResult(self._requests[row.request].id, error=error)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Prompts padded on the left, after what they share; an encoder's on the right."""
        if self.spec.encoder_decoder:
            ids = padded([row.tokens for row in batch.rows])
            mask = [[1] * len(row.tokens) + [0] * (ids.shape[1] - len(row.tokens)) for row in batch.rows]
            return {"input_ids": ids, "attention_mask": torch.tensor(mask)}
        base = batch.shared.length if batch.shared else 0
        longest = max(len(row.tokens) for row in batch.rows)
        rows, masks = [], []
        for row in batch.rows:
            gap = longest - len(row.tokens)
            rows.append([*row.tokens[:base], *([row.tokens[base]] * gap), *row.tokens[base:]])
            masks.append([1] * base + [0] * gap + [1] * (longest - base - gap))
        inputs: dict[str, Any] = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        if batch.shared is not None:
            inputs |= with_cache(self.model, prefix_cache(len(self.spec.blocks), batch.shared.cache, base, keep=True))
        return inputs

    def _result(
        self, request: GenerateRequest, number: int, draw: Draw, end: End, tokens: list[int], eos: frozenset[int]
    ) -> GenerateResult:
        """What one row generated: all up to its end."""
        if draw.failed[number]:
            return GenerateResult(request.id, error=NOT_FINITE)
        upto, finish = end.reached[number]
        tokens = tokens[: upto or len(tokens)]
        at = next((i for i, token in enumerate(tokens) if token in eos), None)
        if at is not None:
            tokens, finish = tokens[:at], "eos"
        text = "" if self._tokenizer is None else self._tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in request.stop:
            text = text.partition(stop)[0]
        return GenerateResult(request.id, tuple(tokens), text, finish or "length")

    def _why_not(self, request: GenerateRequest) -> str:
        """Why a request cannot be computed, or nothing."""
        if error := refusal(request, self.spec):
            return error
        tokens, new = len(request.prompt), request.max_new_tokens
        if not self.packer.has_room(Shape(1, tokens, new_tokens=new, cached=True)):
            return f"{tokens} tokens and {new} new ones do not fit into the memory that the plan leaves"
        return ""
