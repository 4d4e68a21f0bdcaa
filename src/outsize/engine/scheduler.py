"""Many forward passes in one sweep: jobs in greenlets, which park wherever weights must be bound before they go on.

A greenlet is a function that can stop in the middle of whatever it has called and be resumed there. So transformers'
own code runs unmodified in each job, and what one of them waits for is bound once for all that wait for the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from outsize.engine.experts import RoutedExperts
from outsize.engine.forward_context import ForwardContext
from outsize.engine.layer import BoundGroup
from outsize.engine.sweep import Sweep
from outsize.errors import DoesNotFit, OutsizeError
from outsize.planner.batches import MemoryUse

CANCELLED = "cancelled"


class Job(ForwardContext):
    """A computation with the model, of one forward pass or many: ``work()`` gives ``value``, or ``failure`` says why.

    ``memory_use``: what it takes while it is underway. ``together``: jobs that are to begin in the same sweep, right
    after this one. ``single_pass``: it ends with the sweep in which it begins. ``waits_for``: the group that must be
    bound before it goes on; ``paused``: it goes on with the next sweep. Whoever sets ``cancelled``, in any thread, ends
    the job at the next group.
    """

    scheduled = True

    def __init__(self, work: Callable[[], Any], memory_use: MemoryUse, single_pass: bool = False) -> None:
        super().__init__()
        self.work = work
        self.memory_use = memory_use
        self.single_pass = single_pass
        self.together: tuple[Job, ...] = ()
        self.value: Any = None
        self.failure = ""
        self.done = False
        self.waits_for: BoundGroup | RoutedExperts | None = None
        self.paused = False
        self.cancelled = False
        self._greenlet = greenlet(self._run)

    @property
    def group(self) -> tuple[Job, ...]:
        """The job and those that begin with it."""
        return (self, *self.together)

    def resume(self) -> None:
        """Goes on until the job waits again or is done. Raises what concerns more than this job alone."""
        self.waits_for = None
        self.paused = False
        self._greenlet.parent = getcurrent()
        with torch.inference_mode():  # per thread, and left in any order: so it is never on while nobody computes
            self._greenlet.switch()

    def kill(self) -> None:
        """Ends a job that is underway."""
        if self._greenlet and not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            with torch.inference_mode():
                self._greenlet.throw()

    def wait(self, group: BoundGroup | RoutedExperts) -> None:
        """Parks the job until the sweep has come to the group."""
        self.waited = True
        self.waits_for = group
        self._park()

    def pause(self) -> None:
        """Parks the job until the next sweep, so that others come to their turn where no weights are waited for."""
        self.paused = True
        self._park()

    def _park(self) -> None:
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch()

    def _run(self) -> None:
        try:
            self.value = self.work()
        except GreenletExit:
            raise
        except DoesNotFit as error:
            self.failure = str(error)
        except OutsizeError:
            raise  # the files, the stream, a closed model: nobody else could go on either
        except Exception as error:  # noqa: BLE001  whatever it is, it may be this job's alone
            self.failure = f"{type(error).__name__}: {error}"
        self.done = True


class Scheduler:
    """Sweeps over a model until all jobs are done.

    Jobs begin in the order given, at the start of a sweep, as many as ``fits`` says can be underway together. The group
    that comes next in the order of the sweep, of those that jobs wait for, is bound; all that wait for it are resumed,
    in the order in which they began; it is let go. A job that begins another pass meanwhile waits for the next sweep.
    ``arrive`` is asked for more jobs before each sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        fits: Callable[[Sequence[MemoryUse]], bool],
        arrive: Callable[[], Iterable[Job]] = lambda: (),
    ) -> None:
        self.underway: list[Job] = []
        self._sweep = sweep
        self._fits = fits
        self._arrive = arrive
        self._coming: deque[Job] = deque()

    def add(self, jobs: Sequence[Job], *, first: bool = False) -> None:
        """More jobs; ``first``: before those that have not begun."""
        if first:
            self._coming.extendleft(reversed(jobs))
        else:
            self._coming.extend(jobs)

    def run(self) -> Generator[Job]:
        """Yields jobs as they are done, until all are. Closed early, it ends those that are underway.

        Raises OutsizeError for what concerns all, such as files that changed.
        """
        place: float = -1
        try:
            self._coming.extend(self._arrive())
            while self.underway or self._coming:
                yield from self._end_cancelled()
                group = self._next_group(place)
                if group is None:  # a sweep is over, or the first begins
                    yield from self._wake()
                    self._coming.extend(self._arrive())
                    yield from self._begin()
                    group = self._next_group(-1)
                    self._count(group)
                    last = not self._coming and all(job.single_pass for job in self.underway)
                    self._sweep.stream.read_past_end(not last)
                if group is None:
                    place = -1
                    continue
                place = group.place
                self._step(group)
                yield from self._take_done()
        finally:
            for job in self.underway:
                job.kill()
            self.underway.clear()
            self._sweep.leave()
            self._sweep.stream.read_past_end(True)

    def _count(self, group: BoundGroup | RoutedExperts | None) -> None:
        """Counts the sweep that begins with a group."""
        if group is not None:
            self._sweep.sweeps += 1
            if self._sweep.stream.trace is not None:
                self._sweep.stream.trace.sweeps.append(time.monotonic())

    def _step(self, group: BoundGroup | RoutedExperts) -> None:
        """Binds a group, resumes the jobs that wait for it, and lets it go."""
        waiting = [job for job in self.underway if job.waits_for is group]
        self._sweep.advance(group, self.underway)
        for job in waiting:
            self._resume(job)
        self._sweep.leave(job for job in self.underway if not job.done)

    def _next_group(self, after: float) -> BoundGroup | RoutedExperts | None:
        coming = [job.waits_for for job in self.underway if job.waits_for is not None and job.waits_for.place > after]
        return min(coming, key=lambda group: group.place, default=None)

    def _begin(self) -> Iterator[Job]:
        """Begins the jobs that there is room for; one at least. What need not wait is done before the next begins."""
        while self._coming:
            group = self._coming[0].group
            uses = [job.memory_use for job in (*self.underway, *group)]
            if self.underway and not self._fits(uses):
                return
            self._coming.popleft()
            for job in group:
                self.underway.append(job)
                self._resume(job)
            yield from self._take_done()

    def _wake(self) -> Iterator[Job]:
        """Resumes those that paused until this sweep."""
        for job in [job for job in self.underway if job.paused and not job.cancelled]:
            self._resume(job)
        yield from self._take_done()

    def _end_cancelled(self) -> Iterator[Job]:
        for job in self.underway:
            if job.cancelled:
                job.kill()
                job.failure, job.done = CANCELLED, True
        yield from self._take_done()

    def _resume(self, job: Job) -> None:
        alone = self._sweep.context
        self._sweep.context = job
        try:
            job.resume()
        finally:
            self._sweep.context = alone

    def _take_done(self) -> Iterator[Job]:
        done = [job for job in self.underway if job.done]
        if done:
            self.underway = [job for job in self.underway if not job.done]
        yield from done
