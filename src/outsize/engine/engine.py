"""The handle ``model.outsize``: what was decided, what happened, and the end of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outsize.engine.kv_cache import give_room
from outsize.engine.request import DatasetProgress, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.engine.sweep import Sweep
from outsize.errors import DoesNotFit, UsageError
from outsize.kernels import linear_modules, rmsnorm
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.models.tracing.cache_argument import cache_in
from outsize.planner.dataset_cost import DatasetPrediction, predict_shapes
from outsize.planner.plan import Plan
from outsize.sizes import format_size
from outsize.store.reader import Files

if TYPE_CHECKING:
    from outsize.engine.service import Service


@dataclass(frozen=True, slots=True)
class Stats:
    """What a model has done since it was loaded."""

    sweeps: int  # passes over the weights: forward passes, but those that share one count once
    forwards: int  # forward passes
    bytes_read: int  # from the drive
    waited_s: float  # that the computation waited for the drive
    open_s: float  # since the load began
    peak_ram_bytes: int  # most resident memory of the process so far
    expert_hits: int = 0  # uses of a routed expert, one for each layer and pass, that was in memory
    expert_misses: int = 0  # that had to be read
    expert_bytes: int = 0  # that were read of experts


class Engine:
    """Owns a running model's memory and threads.

    ``plan``, ``spec`` and ``machine`` are what it was built from. A forward pass that needs more memory than the budget
    leaves raises DoesNotFit before anything is allocated.
    """

    def __init__(self, spec: ModelSpec, machine: Machine, plan: Plan, sweep: Sweep, files: Files) -> None:
        self.spec = spec
        self.machine = machine
        self.plan = plan
        self._sweep = sweep
        self._files = files
        self._underway = False  # a dataset
        self._began = time.monotonic()
        self._at_close: list[Callable[[], None]] = []
        self._replaced = [linear_modules.replace_in(sweep.model), rmsnorm.replace_in(sweep.model)]
        self._hooks = [
            sweep.model.register_forward_pre_hook(hook, with_kwargs=True)
            for hook in (self._check_room, self._give_room)
        ]

    @property
    def stats(self) -> Stats:
        """What has happened so far."""
        experts = self._sweep.expert_stats
        return Stats(
            sweeps=self._sweep.sweeps,
            forwards=self._sweep.forwards,
            bytes_read=self._sweep.bytes_read,
            waited_s=self._sweep.waited_s,
            open_s=time.monotonic() - self._began,
            peak_ram_bytes=peak_ram_bytes(),
            expert_hits=experts.hits,
            expert_misses=experts.misses,
            expert_bytes=experts.bytes_read,
        )

    def score(
        self, requests: Iterable[ScoreRequest], *, progress: Callable[[DatasetProgress], None] | None = None
    ) -> Iterator[ScoreResult]:
        """How likely each continuation is: a result for each request, as they are ready, in any order.

        All share sweeps over the weights, as far as memory allows. What is wrong with one request is in its result;
        what concerns all is raised: OutsizeError for files that changed or a model that was closed, UsageError where
        another dataset is underway. Closing the iterator early ends everything.
        """
        several = list(requests)
        with self._busy():
            yield from self._watched(self._scoring(several), len(several), progress)

    def generate(
        self,
        requests: Iterable[GenerateRequest],
        *,
        tokenizer: Any = None,
        progress: Callable[[DatasetProgress], None] | None = None,
    ) -> Iterator[GenerateResult]:
        """New tokens for each prompt, as ``score``: results as they are ready, one sweep for a token of each.

        ``tokenizer``: for stop strings, and for the text of results.
        """
        several = list(requests)
        with self._busy():
            yield from self._watched(self._generating(several, tokenizer), len(several), progress)

    @contextmanager
    def serving(
        self, tokenizer: Any, *, prefix_bytes: int | None = None, most_pending: int | None = None
    ) -> Iterator[Service]:
        """A service, to which requests may come at any time from any thread; the model is its own until the end."""
        from outsize.engine.service import MOST_PENDING, Service

        with self._busy():
            facts = (self.spec, self.machine, self.plan)
            most = MOST_PENDING if most_pending is None else most_pending
            service = Service(facts, self._sweep, tokenizer, prefix_bytes=prefix_bytes, most_pending=most)
            try:
                yield service
            finally:
                service.close()

    def predict(self, requests: Sequence[ScoreRequest] | Sequence[GenerateRequest]) -> DatasetPrediction:
        """What a dataset will take from now on: sweeps, seconds, micro-batches, bytes from the drive."""
        work: Any = None
        if requests and isinstance(requests[0], GenerateRequest):
            work = self._generating(requests, tokenizer=object())
        else:
            work = self._scoring(requests)
        loaded = self._sweep.sweeps > 0
        return predict_shapes(self.spec, self.machine, self.plan, work.shapes, loaded=loaded)

    def _scoring(self, requests: Any) -> Any:
        from outsize.engine.scoring import Scoring

        return Scoring(self._sweep.model, self.spec, self.plan, self._sweep, requests)

    def _generating(self, requests: Any, tokenizer: Any) -> Any:
        from outsize.engine.generation import Generating

        return Generating(self._sweep.model, self.spec, self.plan, self._sweep, requests, tokenizer)

    def _watched(self, work: Any, rows: int, progress: Callable[[DatasetProgress], None] | None) -> Iterator[Any]:
        """The results of a dataset, with a word after each."""
        sweeps, disk = self._sweep.sweeps, self._sweep.bytes_read
        results = work.results()
        try:
            for done, result in enumerate(results, start=1):
                if progress is not None:
                    read = self._sweep.bytes_read - disk
                    progress(DatasetProgress(done, rows, self._sweep.sweeps - sweeps, work.tokens, read))
                yield result
        finally:
            results.close()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        if self._underway:
            raise UsageError("a dataset is underway with this model", remedy="finish or close its iterator first")
        self._underway = True
        try:
            yield
        finally:
            self._underway = False

    def at_close(self, call: Callable[[], None]) -> None:
        """Has a function called once, when the model is closed."""
        self._at_close.append(call)

    def close(self) -> None:
        """Ends the threads and frees the memory. The model cannot be used afterwards. A second close does nothing."""
        while self._at_close:
            self._at_close.pop()()
        for hook in self._hooks:
            hook.remove()
        for forwards in self._replaced:
            forwards.restore()
        self._sweep.close()
        self._files.close()

    def _check_room(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Whether the cache and the workspace of the coming pass fit into what the plan leaves free."""
        inputs = _inputs(args, kwargs)
        if inputs is None or self._sweep.context.scheduled:  # who lets it wait has counted what it takes
            return
        batch, tokens = inputs.shape[0], inputs.shape[1]
        past: Any = cache_in(kwargs)
        length = tokens + _held(past)
        request = self.plan.request
        if batch <= request.batch and length <= request.context and tokens <= request.prompt:
            return
        usage = self.plan.usage["ram"]
        computed_here = {module for module, device in self.plan.devices.items() if device == "ram"}
        cache = sum(m.cache.bytes_for(length, length) for m in self.spec.modules if m.name in computed_here)
        need = batch * cache + self.spec.workspace.bytes_for(batch, tokens)
        have = usage.capacity_bytes - usage.total_bytes + usage.kv_bytes + usage.workspace_bytes
        if need > have:
            raise DoesNotFit(
                f"a pass over {batch} sequences of {length} tokens does not fit into the memory that the plan leaves",
                need=format_size(need),
                have=f"{format_size(have)} for cache and workspace",
                remedy=f"load the model with context={length} and batch={batch}",
                shortfall_bytes=need - have,
            )

    def _give_room(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Lets a new cache take its room at once: for the context, or for as many tokens of more sequences as fit."""
        inputs = _inputs(args, kwargs)
        cache = cache_in(kwargs)
        if inputs is None or cache is None:
            return
        request = self.plan.request
        planned = min(request.context, request.context * request.batch // max(inputs.shape[0], 1))
        give_room(cache, self._sweep.context.tokens or planned)


def _held(past: Any) -> int:
    """The tokens in a cache; 0 for one of another kind, or of states alone, which do not grow."""
    try:
        return int(past.get_seq_length()) if hasattr(past, "get_seq_length") else 0
    except ValueError:  # all its layers are of linear attention
        return 0


def _inputs(args: Any, kwargs: dict[str, Any]) -> Any:
    for name in ("decoder_input_ids", "input_ids", "inputs_embeds"):
        if kwargs.get(name) is not None:
            return kwargs[name]
    return args[0] if args and hasattr(args[0], "shape") and len(args[0].shape) >= 2 else None


def peak_ram_bytes() -> int:
    """Most resident memory this process has had: VmHWM of /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
