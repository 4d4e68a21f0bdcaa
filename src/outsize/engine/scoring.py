"""Log-likelihoods of continuations, of a whole dataset in as few sweeps as memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from outsize.engine.batching import Batch
from outsize.engine.dataset_job import Work
from outsize.engine.finite import NOT_FINITE
from outsize.engine.logits import Pick, likelihoods
from outsize.engine.prefix_cache import prefix_cache
from outsize.engine.request import ScoreRequest, ScoreResult
from outsize.engine.sequence import Row, Want, padded, refusal, rows_of, scored_tokens
from outsize.engine.sweep import Sweep
from outsize.models.spec import ModelSpec
from outsize.models.tracing.cache_argument import with_cache
from outsize.planner.batches import Shape
from outsize.planner.plan import Plan

Answer = tuple[Row, list[tuple[float, bool]], str]  # of each want: sum, and whether greedy; or an error


class Scoring(Work):
    """Scores requests with a model."""

    single_pass = True

    def __init__(self, model: Any, spec: ModelSpec, plan: Plan, sweep: Sweep, requests: Sequence[ScoreRequest]) -> None:
        super().__init__(model, spec, plan, sweep, requests)
        self._answers: list[dict[int, tuple[float, bool]]] = [{} for _ in requests]
        self.errors = [self._why_not(request) for request in requests]
        rows = rows_of(requests, self.errors, self._start_token() if spec.encoder_decoder else None)
        self.groups = self.packer.for_scoring(rows)

    def refused(self) -> Iterator[ScoreResult]:
        """Results of requests that are not computed at all."""
        for request, error in zip(self._requests, self.errors, strict=True):
            if error:
                yield ScoreResult(request.id, error=error)

    def tokens_of(self, request: ScoreRequest) -> Sequence[int]:
        """The context and, of one stack, the first continuation."""
        return request.context if self.spec.encoder_decoder else (*request.context, *request.continuations[0])

    def compute(self, batch: Batch) -> list[Answer]:
        """Scores what is wanted of each row."""
        assert self.head is not None
        inputs = self._both_stacks(batch) if self.spec.encoder_decoder else self._one_stack(batch)
        base = batch.shared.length if batch.shared else 0
        rows: list[int] = []
        positions: list[int] = []
        wanted: list[tuple[int, int]] = []  # place among the positions, token
        for number, row in enumerate(batch.rows):
            here = {p: len(positions) + i for i, p in enumerate(row.positions)}
            rows += [number] * len(here)
            positions += [p - base for p in here]
            wanted += [(here[w.start + i], token) for w in row.wants for i, token in enumerate(w.tokens)]
        order = sorted(range(len(wanted)), key=wanted.__getitem__)
        logits = self.head.logits(self.model, Pick(rows, positions, self.most_logits), inputs)
        found = likelihoods(logits, [wanted[i] for i in order], self.most_logits)
        in_place = dict(zip(order, found, strict=True))
        return _answers(batch.rows, [in_place[i] for i in range(len(wanted))])

    def finish(self, batch: Batch, value: list[Answer]) -> Iterator[ScoreResult]:
        """Results of requests whose last continuation is in it."""
        for row, answers, error in value:
            if error:
                yield from self.fail(row, error)
                continue
            for want, answer in zip(row.wants, answers, strict=True):
                yield from self._take(want, answer)

    def fail(self, row: Row, error: str) -> Iterator[ScoreResult]:
        """One continuation that cannot be scored is the request's error."""
        for want in row.wants:
            if not self.errors[want.request]:
                self.errors[want.request] = error
                yield ScoreResult(self._requests[want.request].id, error=error)

    def _one_stack(self, batch: Batch) -> dict[str, Any]:
        """Right-padded, without a mask: what is padded comes after all that counts, and no token sees the future."""
        shared = batch.shared
        if shared is None:
            return {"input_ids": padded([row.tokens for row in batch.rows]), "use_cache": False}
        rows = None if shared.places is None else list(shared.places)
        cache = prefix_cache(len(self.spec.blocks), shared.cache, shared.length, rows, keep=False)
        ids = padded([row.tokens[shared.length :] for row in batch.rows])
        return {"input_ids": ids, **with_cache(self.model, cache), "use_cache": True}

    def _both_stacks(self, batch: Batch) -> dict[str, Any]:
        """The encoder reads each context once, whatever the number of its continuations."""
        contexts = list(dict.fromkeys(row.context for row in batch.rows))
        ids = padded(contexts)
        mask = torch.tensor([[1] * len(c) + [0] * (ids.shape[1] - len(c)) for c in contexts])
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        which = torch.tensor([contexts.index(row.context) for row in batch.rows])
        hidden = encoded.last_hidden_state
        encoded.last_hidden_state = hidden[which.to(hidden.device)]
        return {
            "encoder_outputs": encoded,
            "attention_mask": mask[which],
            "decoder_input_ids": padded([row.tokens for row in batch.rows]),
            "use_cache": False,
        }

    def _take(self, want: Want, answer: tuple[float, bool]) -> Iterator[ScoreResult]:
        if self.errors[want.request]:
            return
        request, answers = self._requests[want.request], self._answers[want.request]
        answers[want.choice] = answer
        if len(answers) == len(request.continuations):
            numbers = range(len(answers))
            yield ScoreResult(
                request.id,
                logprobs=tuple(answers[n][0] for n in numbers),
                tokens=tuple(len(tokens) for tokens in request.continuations),
                greedy=tuple(answers[n][1] for n in numbers),
            )
            answers.clear()

    def _start_token(self) -> int:
        for name in ("decoder_start_token_id", "bos_token_id"):
            for config in (self.model.generation_config, self.model.config):
                token = getattr(config, name, None)
                if token is not None:
                    return int(token[0] if isinstance(token, list) else token)
        return 0

    def _why_not(self, request: ScoreRequest) -> str:
        """Why a request cannot be computed, or nothing."""
        if error := refusal(request, self.spec):
            return error
        tokens, longest = scored_tokens(request, self.spec), max(len(tokens) for tokens in request.continuations)
        if not self.packer.has_room(Shape(1, tokens, scored=longest)):
            return f"{tokens} tokens do not fit into the memory that the plan leaves; try: a larger context or batch"
        return ""


def _answers(rows: Sequence[Row], tokens: Sequence[tuple[float, bool]]) -> list[Answer]:
    """Each continuation's tokens together; ``tokens`` are those of all rows' wants, one after the other."""
    made: list[Answer] = []
    at = 0
    for row in rows:
        answers = []
        for want in row.wants:
            its = tokens[at : at + len(want.tokens)]
            at += len(want.tokens)
            answers.append((math.fsum(logprob for logprob, _ in its), all(greedy for _, greedy in its)))
        finite = all(math.isfinite(logprob) for logprob, _ in answers)
        made.append((row, answers, "" if finite else NOT_FINITE))
    return made
