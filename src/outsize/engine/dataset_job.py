"""A dataset underway: micro-batches as jobs, what comes of them, and what becomes of those that fail."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from outsize.engine.batching import Batch, Group, Packer
from outsize.engine.finite import NOT_FINITE, REMEDY, NotFinite, first_bad_layer
from outsize.engine.logits import Head, Pick
from outsize.engine.scheduler import Job, Scheduler
from outsize.engine.sequence import Row, padded
from outsize.engine.sweep import Sweep
from outsize.models.spec import ModelSpec
from outsize.models.tracing.cache_argument import with_cache
from outsize.planner.batches import MemoryUse, Shape, kept_rows_bytes, logit_rows
from outsize.planner.plan import Plan


class Work(ABC):
    """The part that scoring and generating have in common. ``results`` yields each as it is ready.

    ``errors``: of each request, why it cannot be computed, or "". ``single_pass``: a micro-batch is one forward pass.
    """

    single_pass = False

    def __init__(self, model: Any, spec: ModelSpec, plan: Plan, sweep: Sweep, requests: Sequence[Any]) -> None:
        self.model, self.spec = model, spec
        self._requests = requests
        self.packer = Packer(model, spec, plan)
        self._kept_rows = kept_rows_bytes(plan)
        self.tokens = 0  # computed so far
        self.errors: list[str] = []
        self.groups: list[Group] = []  # to be computed, in this order
        self.most_logits = logit_rows(spec)
        self.head: Head | None = None
        self._sweep = sweep
        self._batches: dict[Job, Batch] = {}
        self._held: dict[
            int, tuple[MemoryUse, int]
        ] = {}  # prefixes that are kept: what they take, micro-batches to come

    @property
    def shapes(self) -> list[Shape]:
        """The micro-batches in the order in which they begin."""
        return [batch.shape for group in self.groups for batch in group]

    @abstractmethod
    def refused(self) -> Iterator[Any]:
        """Results of requests that are not computed at all."""

    @abstractmethod
    def tokens_of(self, request: Any) -> Sequence[int]:
        """What the model reads of a request, or enough of it to see where numbers are lost."""

    @abstractmethod
    def compute(self, batch: Batch) -> Any:
        """What a micro-batch's job does; in a greenlet."""

    @abstractmethod
    def finish(self, batch: Batch, value: Any) -> Iterator[Any]:
        """Results that a micro-batch completes."""

    @abstractmethod
    def fail(self, row: Row, error: str) -> Iterator[Any]:
        """Results of a row that failed alone."""

    def results(self) -> Iterator[Any]:
        """Computes, and yields a result for each request. Raises OutsizeError for what concerns all.

        Those without finite logits come last, because naming the layer where numbers are lost takes one more sweep.
        """
        yield from self.refused()
        lost = []
        for result in self._computed() if self.groups else ():
            if result.error == NOT_FINITE:
                lost.append(result)
            else:
                yield result
        if lost:
            request = next(request for request in self._requests if request.id == lost[0].id)
            layer = first_bad_layer(self.model, {"input_ids": torch.tensor([self.tokens_of(request)])})
            error = str(NotFinite(NOT_FINITE, remedy=REMEDY).at(layer))
            yield from (replace(result, error=error) for result in lost)

    def _computed(self) -> Iterator[Any]:
        scheduler = Scheduler(self._sweep, self._fits)
        running = scheduler.run()
        self.head = Head(self.model)
        self._sweep.keep_rows(self._kept_rows)
        try:
            scheduler.add([self._job(group) for group in self.groups])
            self.groups = []
            for job in running:
                yield from self._settle(job, scheduler)
        finally:
            running.close()
            self.head.close()
            self._sweep.keep_rows(0)

    def compute_stem(self, batch: Batch) -> None:
        """Fills a cache. Nobody wants the logits; the head computes those of one position."""
        assert batch.shared is not None
        assert self.head is not None
        before = batch.shape.past
        ids = padded([row.tokens[before:] for row in batch.rows])
        inputs = {"input_ids": ids, **with_cache(self.model, batch.shared.cache), "use_cache": True}
        for _ in self.head.logits(self.model, Pick([0], [ids.shape[1] - 1], self.most_logits), inputs):
            pass

    def _fits(self, uses: Sequence[MemoryUse]) -> bool:
        return self.packer.room.fits([*uses, *(memory_use for memory_use, _ in self._held.values())])

    def _job(self, group: Group) -> Job:
        first, *others = (Job(partial(self._run, b), self.packer.memory_use(b.shape), self.single_pass) for b in group)
        first.together = tuple(others)
        self._batches.update(zip(first.group, group, strict=True))
        return first

    def _run(self, batch: Batch) -> Any:
        return self.compute_stem(batch) if batch.sharing else self.compute(batch)

    def _settle(self, job: Job, scheduler: Scheduler) -> Iterator[Any]:
        """What a job that is done gives; what failed together is tried again in smaller parts."""
        batch = self._batches.pop(job)
        self.tokens += batch.shape.rows * batch.shape.tokens
        if batch.sharing:  # where it failed, those who share it fail too, and are tried again without it
            if not batch.shape.transient and not job.failure:
                self._held[id(batch.shared)] = (MemoryUse(job.memory_use.resting, 0), batch.sharing)
            return
        self._forget_stem(batch)
        if not job.failure:
            yield from self.finish(batch, job.value)
        elif batch.shared is None and len(batch.rows) == 1:
            yield from self.fail(batch.rows[0], job.failure)
        else:
            scheduler.add(self._again(batch), first=True)

    def _forget_stem(self, batch: Batch) -> None:
        """Counts down to the last of those that continue a prefix."""
        held = self._held.pop(id(batch.shared), None)
        if held is not None and held[1] > 1:
            self._held[id(batch.shared)] = (held[0], held[1] - 1)

    def _again(self, batch: Batch) -> list[Job]:
        """Without a shared prefix first, then in halves."""
        half = (len(batch.rows) + 1) // 2 if batch.shared is None else len(batch.rows)
        parts = [part for part in (batch.rows[:half], batch.rows[half:]) if part]
        return [self._job((small,)) for part in parts for small in self.packer.pack(part)]
