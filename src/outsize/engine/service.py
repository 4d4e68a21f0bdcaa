"""Requests that join the sweep whenever they come: one thread computes, any thread asks.

Each sequence is a job of the scheduler (transformers' own generation in a greenlet), so what is streamed is read once
for all, a prompt is computed beside others' tokens, and an answer is that which the sequence would get alone. Memory
decides how many are underway; the others wait in a bounded queue, clients taking turns.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outsize.engine.answer import Answer, Event, Failed, Wish
from outsize.engine.kept_prefixes import KeptPrefixes
from outsize.engine.logits import Head
from outsize.engine.pending import Pending
from outsize.engine.prefix_cache import can_share_prefixes
from outsize.engine.scheduler import CANCELLED, Job, Scheduler
from outsize.engine.sequence import too_long, unknown_token
from outsize.engine.sweep import Sweep
from outsize.errors import DoesNotFit, OutsizeError, UsageError, said
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.batches import MemoryUse, Shape, memory_use_of, room_of
from outsize.planner.plan import Plan
from outsize.planner.request_cost import Sequencing, answer_s, waiting_s
from outsize.planner.sweep_cost import SweepCost
from outsize.sizes import format_size

PREFIX_SHARE = 0.25  # of the room for sequences, for caches of earlier requests
MOST_UNDERWAY = 256
MOST_PENDING = 512


class Busy(OutsizeError):
    """The queue is full. ``seconds``: when there will be room, as predicted."""

    def __init__(self, what: str, seconds: float, *, have: str) -> None:
        self.seconds = seconds
        super().__init__(what, have=have, remedy=f"again in {max(math.ceil(seconds), 1)} s")


class Closing(OutsizeError):
    """The service takes no more requests."""


@dataclass(slots=True)
class Ticket:
    """Sequences that were asked for together. ``predicted_s``: until the last of them is done, at the longest."""

    answers: tuple[Answer, ...]
    predicted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a service is doing. ``last_sweep_s``: seconds of the sweep before this one; predicted beside it."""

    underway: int
    pending: int
    loaded: bool
    sweep_s: float
    predicted_sweep_s: float
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    finished: int
    failed: int
    cancelled: int
    kept_prefixes: int
    kept_bytes: int
    most_sharing: int


@dataclass(slots=True)
class Counts:
    """What a service has done so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    most_sharing: int = 0


class Service:
    """A model that answers many requests at once. One of its kind at a time; the model belongs to it until ``close``.

    ``prefix_bytes``: most bytes of keys and values that are kept for later requests, None for a quarter of the room
    that the plan leaves; ``most_pending``: sequences that may wait.
    """

    def __init__(
        self,
        facts: tuple[ModelSpec, Machine, Plan],
        sweep: Sweep,
        tokenizer: Any,
        *,
        prefix_bytes: int | None = None,
        most_pending: int = MOST_PENDING,
    ) -> None:
        self.spec, self.machine, self.plan = facts
        self.model = sweep.model
        self.sweep = sweep
        self.tokenizer = tokenizer
        self.special: dict[str, int] = tokenizer.get_added_vocab()
        self.broken: OutsizeError | None = None
        self.counts = Counts()
        self.sharing = can_share_prefixes(self.model, self.spec)
        self._room = room_of(self.spec, self.plan)
        budget = int(PREFIX_SHARE * sum(max(size, 0) for _, size in self._room.tiers))
        self.kept = KeptPrefixes(self.model, self.spec, self.plan, budget if prefix_bytes is None else prefix_bytes)
        self.most_pending = most_pending
        self.head: Head | None = None
        self._cost = SweepCost.of(self.spec, self.machine, self.plan)
        self._scheduler = Scheduler(sweep, lambda uses: True, self._arrive)
        self._pending = Pending()
        self._underway: dict[Job, Answer] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._sweep_began: float | None = None
        self._sweep_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="outsize-service", daemon=True)
        self._thread.start()

    # --- any thread ---

    def submit(self, wishes: Sequence[Wish], tell: Callable[[int, Event], None], client: str = "") -> Ticket:
        """Asks for sequences; ``tell`` gets the number of each and what happens to it, in the service's own thread.

        Raises UsageError for one that makes no sense, DoesNotFit for one that no wait would help, Busy where the queue
        is full, Closing.
        """
        answers = []
        for number, wish in enumerate(wishes):
            self.check(wish)
            answers.append(Answer(self, wish, lambda event, number=number: tell(number, event)))  # type: ignore[misc]
        with self._changed:
            if self.broken is not None:
                raise self.broken
            if self._closing:
                raise Closing("this server is about to end", remedy="again when it is back")
            if self._pending and len(self._pending) + len(answers) > self.most_pending:
                waits = self._waiting_s()
                raise Busy("too many requests are waiting", waits, have=f"{len(self._pending)} sequences")
            ticket = Ticket(tuple(answers), self._predict([answer.sequencing for answer in answers]))
            self._pending.add(client, answers)
            self._changed.notify_all()
        return ticket

    def check(self, wish: Wish) -> None:
        """Raises UsageError or DoesNotFit for a sequence that can never be computed."""
        request = wish.request
        tokens, new = len(request.prompt), request.max_new_tokens
        if not tokens:
            raise UsageError("the prompt is empty", need="one token at least")
        if new < (0 if wish.score_prompt else 1):
            raise UsageError("the number of new tokens must be at least 1", have=str(new))
        if wish.score_prompt and self.spec.encoder_decoder:
            raise UsageError("the prompt of an encoder-decoder model cannot be scored")
        whole = max(tokens, new) if self.spec.encoder_decoder else tokens + max(new, 1) - 1
        for error in (unknown_token(request.prompt, self.spec), too_long(whole, self.spec)):
            if error:
                raise UsageError(error, remedy="a shorter prompt or fewer new tokens" if "positions" in error else "")
        use = self.memory_use(wish)
        if not self._room.fits([use]):
            tier, have = min(self._room.tiers, key=lambda one: one[1] - dict(use.resting)[one[0]] - use.workspace)
            need = dict(use.resting)[tier] + use.workspace
            raise DoesNotFit(
                f"{tokens} tokens and {new} new ones do not fit",
                need=f"{format_size(need)} of {tier}",
                have=f"{format_size(max(have, 0))} for all sequences",
                remedy="a shorter prompt, fewer new tokens, or a server with a larger --context",
                shortfall_bytes=need - have,
            )

    def cancel(self, ticket: Ticket) -> None:
        """Ends what is left of a ticket, at the next group."""
        with self._changed:
            for answer in ticket.answers:
                answer.cancelled = True
                if answer.job is not None:
                    answer.job.cancelled = True
            self._changed.notify_all()

    def load(self) -> Load:
        """What is going on."""
        with self._changed:
            underway = [answer.sequencing for answer in self._underway.values()]
            predicted = self._cost.sweep_s([one.steady for one in underway]) if underway else 0.0
            counts = self.counts
            return Load(
                underway=len(underway),
                pending=len(self._pending),
                loaded=self.sweep.sweeps > 0,
                sweep_s=self._sweep_s,
                predicted_sweep_s=predicted,
                prompt_tokens=counts.prompt_tokens,
                cached_tokens=counts.cached_tokens,
                new_tokens=counts.new_tokens,
                finished=counts.finished,
                failed=counts.failed,
                cancelled=counts.cancelled,
                kept_prefixes=len(self.kept),
                kept_bytes=self.kept.nbytes,
                most_sharing=counts.most_sharing,
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Takes no more requests, lets those that there are end for so many seconds, and ends the others."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(drain_s)
        with self._changed:
            for answer in (*self._pending, *self._underway.values()):
                answer.cancelled = True
                if answer.job is not None:
                    answer.job.cancelled = True
            self._changed.notify_all()
        self._thread.join()

    # --- the service's own thread ---

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closing:
                    self._changed.wait()
                if self._closing and not self._pending:
                    return
            try:
                self._sweep_all()
            except BaseException as error:  # noqa: BLE001  whatever ends the thread ends all requests
                self._break(error)
                return

    def _sweep_all(self) -> None:
        running = self._scheduler.run()
        self.head = Head(self.model)
        try:
            for job in running:
                self._settle(job)
        finally:
            running.close()
            self.head.close()
            self._sweep_began = None

    def _arrive(self) -> Iterator[Job]:
        """Jobs of those whose turn it is and for whom there is room, before each sweep."""
        now = time.monotonic()
        if self._sweep_began is not None:
            self._sweep_s = now - self._sweep_began
        self._sweep_began = now
        with self._changed:
            while (answer := self._pending.first()) is not None and self._makes_room(answer):
                self._pending.take()
                job = Job(answer.work, self.memory_use(answer.wish))
                answer.job = job
                self._underway[job] = answer
                yield job
            self.counts.most_sharing = max(self.counts.most_sharing, len(self._underway))

    def _makes_room(self, answer: Answer) -> bool:
        """Whether a sequence can begin; caches of earlier requests make way for it."""
        if len(self._underway) >= MOST_UNDERWAY:
            return False
        uses = [*(job.memory_use for job in self._underway), self.memory_use(answer.wish)]
        while not self._room.fits([*uses, *self.kept.uses]):
            if not self.kept.drop():
                return False
        return True

    def _settle(self, job: Job) -> None:
        with self._changed:
            answer = self._underway.pop(job)
        if answer.cache is not None and self.sharing:
            self.kept.keep(answer.known, answer.cache)
        answer.cache = None
        if not job.failure:
            self.counts.finished += 1
            answer.finish()
            return
        if job.failure == CANCELLED:
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        answer.tell(Failed(job.failure))

    def _break(self, error: BaseException) -> None:
        with self._changed:
            if isinstance(error, OutsizeError):
                self.broken = error
            else:
                self.broken = OutsizeError(f"the engine broke: {type(error).__name__}: {said(error)}")
            left = [*self._underway.values(), *self._pending]
            self._underway.clear()
            self._pending.clients.clear()
        for answer in left:
            with contextlib.suppress(Exception):
                answer.tell(Failed(str(self.broken)))

    # --- both ---

    def memory_use(self, wish: Wish) -> MemoryUse:
        """What a sequence takes, with the logits of all positions of a prompt that is scored."""
        use = memory_use_of(self.spec, self.plan, wish.shape)
        if not wish.score_prompt:
            return use
        tokens = len(wish.request.prompt)
        scoring = memory_use_of(self.spec, self.plan, Shape(1, tokens, scored=tokens, cached=True))
        return replace(use, workspace=max(use.workspace, scoring.workspace))

    def caches_underway(self) -> list[tuple[tuple[int, ...], Any]]:
        """Tokens and caches of sequences that are being computed, for those that begin alike."""
        return [(answer.known, answer.cache) for answer in self._underway.values() if answer.cache is not None]

    def _predict(self, mine: Sequence[Sequencing]) -> float:
        underway = [answer.sequencing for answer in self._underway.values()]
        waits = self._waiting_s() if self._pending else 0.0
        return waits + answer_s(self._cost, mine, underway)

    def _waiting_s(self) -> float:
        underway = [answer.sequencing for answer in self._underway.values()]
        return waiting_s(self._cost, underway, [answer.sequencing for answer in self._pending])
