"""Threads that read what others wait for, in chunks of a few MB, and hand on whatever goes wrong."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from outsize.errors import OutsizeError
from outsize.store.layout import Extent, Layout
from outsize.store.reader import Files
from outsize.store.trace import Trace

# More than keep the drive busy: some of them wait for the interpreter while the model computes.
READERS = 8
CHUNK = 8 << 20  # bytes of one read: large enough to keep a drive busy, small enough to share it between readers


@dataclass(slots=True)
class Load:
    """What is being read: a name, where its bytes lie, where they go, and how far the readers have come."""

    name: str
    layout: Layout
    view: memoryview
    unread: deque[tuple[Extent, int]] = field(default_factory=deque)  # chunks: of an extent, from where
    reading: int = 0  # chunks that readers are at

    def __post_init__(self) -> None:
        for extent in self.layout.extents:
            self.unread.extend((extent, start) for start in range(0, extent.length, CHUNK))


class Work(Protocol):
    """Who says what is read. Both are called with ``changed`` held."""

    def next_load(self) -> Load | None:
        """What is to be read next, with chunks that nobody reads yet; None: nothing now."""

    def loaded(self, load: Load) -> None:
        """All of it has come, and its files are still what they were."""


class ChunkReaders:
    """Reader threads of one owner, from ``start`` to ``close``.

    ``changed`` guards what the owner and the readers share; whoever gives them more to read notifies it.
    ``bytes_read`` and ``waited_s`` count what came from the drive, and how long ``waiting`` took.
    """

    def __init__(self, files: Files, work: Work, name: str, threads: int, trace: Trace | None) -> None:
        self.changed = threading.Condition()
        self.bytes_read = 0
        self.waited_s = 0.0
        self._files, self._work, self._trace = files, work, trace
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._read, name=f"outsize-{name}-{i}", daemon=True) for i in range(threads)
        ]

    def start(self) -> None:
        """Begins to read."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads, except the one that calls; whoever waits is told."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()

    def raise_if_over(self) -> None:
        """Raises what a reader ran into, and OutsizeError after ``close``."""
        if self._error is not None:
            raise self._error
        if self._closed:
            raise OutsizeError("the model was closed", remedy="load it again")

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Counts the time that somebody waits for what is read."""
        began = time.monotonic()
        yield
        self.waited_s += time.monotonic() - began
        if self._trace is not None:
            self._trace.add("wait", name, began)

    def _read(self) -> None:
        """The life of a thread: the first unread chunk of what is next, until all is over."""
        try:
            while (taken := self._take()) is not None:
                load, extent, start = taken
                began = time.monotonic()
                length = min(CHUNK, extent.length - start)
                place = load.view[extent.position + start : extent.position + start + length]
                needed = min(length, extent.needed - start)
                got = self._files.read_into(extent.file, extent.offset + start, place, needed)
                if self._trace is not None:
                    self._trace.add("read", load.name, began, got)
                if self._was_last(load, got):
                    self._files.check(load.layout.files)
                    with self.changed:
                        load.reading -= 1
                        self._work.loaded(load)
                        self.changed.notify_all()
                del taken, load, place  # a thread that waits must not keep memory alive
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to the thread that computes
            with self.changed:
                self._error = self._error or error
                self.changed.notify_all()

    def _take(self) -> tuple[Load, Extent, int] | None:
        with self.changed:
            while not self._closed and self._error is None:
                load = self._work.next_load()
                if load is not None:
                    load.reading += 1
                    return (load, *load.unread.popleft())
                self.changed.wait()
            return None

    def _was_last(self, load: Load, got: int) -> bool:
        """Counts a chunk as read. After the last, what is loaded still counts as being read until it is checked."""
        with self.changed:
            self.bytes_read += got
            if load.reading == 1 and not load.unread:
                return True
            load.reading -= 1
            return False
