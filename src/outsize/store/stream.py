"""Bytes in motion: what the sweep needs next is read before it asks, and the drive never waits for the computation.

A few threads read in pieces of a few MB. Units that stay get memory of their own and are read once; the others pass
through a ring of equal buffers. Which unit comes next is learnt: each acquire is noted as the successor of the one
before, starting from the order of the list, so that encoder-decoder models, whose decoder is swept many times after one
pass of the encoder, are predicted as well as plain ones.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outsize.errors import OutsizeError
from outsize.store.direct_files import Files
from outsize.store.layout import Extent, Layout
from outsize.store.memory import Memory

READERS = 4
PIECE = 8 << 20  # bytes of one read: large enough to keep a drive busy, small enough to share it between readers

Stay = Literal["keep", "once", "stream"]
State = Literal["absent", "loading", "ready", "held", "done"]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What is to be read for one unit, and for how long.

    ``keep``: into memory of its own, once. ``once``: through the ring, once (it is copied on from there).
    ``stream``: through the ring, every time.
    """

    name: str
    layout: Layout
    stay: Stay


@dataclass(slots=True)
class StreamStats:
    """What a stream has done so far."""

    bytes_read: int = 0
    waited_s: float = 0.0  # that an acquire had to wait for the drive
    mispredicted: int = 0  # acquires that found another unit's read in their way


@dataclass(slots=True)
class _Entry:
    cargo: Cargo
    successor: int
    state: State = "absent"
    memory: Memory | None = None
    pieces_left: int = 0


@dataclass(order=True, slots=True)
class _Piece:
    turn: int
    number: int
    entry: _Entry = field(compare=False)
    extent: Extent = field(compare=False)
    start: int = field(compare=False)


class Stream:
    """Loads cargo ahead of its use. ``acquire`` and ``release`` come from one thread at a time; any thread may close."""

    def __init__(
        self, files: Files, cargo: Sequence[Cargo], *, slots: int, slot_bytes: int, readers: int = READERS
    ) -> None:
        self.stats = StreamStats()
        self._files = files
        self._entries = [_Entry(c, (i + 1) % len(cargo)) for i, c in enumerate(cargo)]
        needs_ring = any(c.stay != "keep" for c in cargo)
        self._free = [Memory(slot_bytes) for _ in range(slots)] if needs_ring else []
        self._queue: list[_Piece] = []
        self._numbers = 0
        self._turn = 0
        self._position = 0
        self._last: int | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read_pieces, name=f"outsize-reader-{i}", daemon=True) for i in range(readers)
        ]

    def start(self, after_last: int = 0) -> None:
        """Begins to read, in the order of the cargo; ``after_last`` is the first guess at what follows the last unit."""
        with self._changed:
            if self._entries:
                self._entries[-1].successor = after_last
                self._fill()
        for thread in self._threads:
            thread.start()

    def acquire(self, index: int) -> Memory:
        """The memory that holds a unit's bytes, once they are there. Held until ``release``.

        Raises what the readers ran into (ModelChanged, DamagedModel), and OutsizeError after ``close``.
        """
        entry = self._entries[index]
        began = time.monotonic()
        with self._changed:
            if self._last is not None:
                self._entries[self._last].successor = index
            self._last = self._position = index
            self._turn += 1
            if entry.state == "absent":
                self.stats.mispredicted += self._turn > 1
                self._claim(entry)
            self._fill()
            while entry.state != "ready" and entry.state != "held":
                self._raise_if_over()
                if entry.state == "absent":
                    self._claim(entry)
                if entry.state == "absent" or entry.state == "loading":
                    self._changed.wait()
            self._raise_if_over()
            entry.state = "held"
            self.stats.waited_s += time.monotonic() - began
            assert entry.memory is not None
            return entry.memory

    def release(self, index: int) -> None:
        """Gives a unit's buffer back to the ring; memory that is kept stays as it is."""
        with self._changed:
            entry = self._entries[index]
            if entry.state != "held":
                return
            if entry.cargo.stay == "keep":
                entry.state = "ready"
            else:
                entry.state = "done" if entry.cargo.stay == "once" else "absent"
                self._recycle(entry)
            if self._position == index:
                self._position = entry.successor  # this one has had its turn
            self._fill()

    def close(self) -> None:
        """Stops the readers and lets go of all memory; acquires raise from now on."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()
        for entry in self._entries:
            entry.memory = None
        self._free.clear()

    @property
    def loaded(self) -> int:
        """Bytes of cargo that have arrived and stay."""
        stays = [e for e in self._entries if e.cargo.stay != "stream" and e.state in ("ready", "held", "done")]
        return sum(entry.cargo.layout.nbytes for entry in stays)

    def _recycle(self, entry: _Entry) -> None:
        assert entry.memory is not None
        self._free.append(entry.memory)
        entry.memory = None
        if not any(e.cargo.stay != "keep" and e.state != "done" for e in self._entries):
            self._free.clear()  # the ring has done its work: its memory goes

    def _claim(self, entry: _Entry) -> None:
        """Starts the read that is waited for, taking the buffer of a unit that was read for nothing if need be."""
        if entry.cargo.stay == "keep":
            self._begin(entry, Memory(entry.cargo.layout.nbytes), self._turn)
            return
        if not self._free:
            ring = [e for e in self._entries if e.cargo.stay != "keep" and e.memory is not None]
            ready = [e for e in ring if e.state == "ready"]
            if not ready and all(e.state == "held" for e in ring):
                raise OutsizeError(f"no buffer for {entry.cargo.name}: all {len(ring)} are in use at the same time")
            for victim in ready[-1:]:
                victim.state = "absent"
                self._recycle(victim)
        if self._free:
            self._begin(entry, self._free.pop(), self._turn)

    def _fill(self) -> None:
        """Queues reads for what comes next, as far as there are buffers, in the order in which it will be needed."""
        index = self._position
        for distance in range(len(self._entries)):
            entry = self._entries[index]
            if entry.state == "absent":
                if entry.cargo.stay == "keep":
                    self._begin(entry, Memory(entry.cargo.layout.nbytes), self._turn + distance)
                elif self._free:
                    self._begin(entry, self._free.pop(), self._turn + distance)
            index = entry.successor

    def _begin(self, entry: _Entry, memory: Memory, turn: int) -> None:
        entry.memory, entry.state = memory, "loading"
        for extent in entry.cargo.layout.extents:
            for start in range(0, extent.length, PIECE):
                self._numbers += 1
                entry.pieces_left += 1
                heapq.heappush(self._queue, _Piece(turn, self._numbers, entry, extent, start))
        if entry.pieces_left == 0:
            entry.state = "ready"
        self._changed.notify_all()

    def _read_pieces(self) -> None:
        """The life of a reader thread."""
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                piece = heapq.heappop(self._queue)
                memory = piece.entry.memory
            try:
                assert memory is not None
                got = self._read(piece, memory)
                with self._changed:
                    self.stats.bytes_read += got
                    piece.entry.pieces_left -= 1
                    whole = piece.entry.pieces_left == 0
                if whole:
                    self._files.check(piece.entry.cargo.layout.files)
                    with self._changed:
                        piece.entry.state = "ready"
                        self._changed.notify_all()
            except BaseException as error:  # whatever it is, it belongs to the thread that computes
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return

    def _read(self, piece: _Piece, memory: Memory) -> int:
        extent = piece.extent
        length = min(PIECE, extent.length - piece.start)
        needed = min(length, extent.needed - piece.start)
        at = extent.position + piece.start
        return self._files.read_into(extent.file, extent.offset + piece.start, memory.view[at : at + length], needed)

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise OutsizeError("the model was closed", remedy="load it again")
