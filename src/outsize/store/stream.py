"""Bytes in motion: what the sweep needs next is read before it asks, and the drive never waits for the computation.

A few threads read in pieces of a few MB. Units that stay get memory of their own and are read once; the others pass
through a ring of equal buffers. What is made into something smaller before it stays passes through the room that the
smaller form will take, as long as there is enough of it.

Which unit comes next is predicted: at first by the order of the list, later by what was seen to follow. One surprise
changes nothing, two in a row do: an encoder-decoder model, whose decoder is swept for every token and whose encoder for
every prompt, is a surprise once per prompt.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outsize.errors import OutsizeError
from outsize.store.buffer import Memory
from outsize.store.layout import Extent, Layout
from outsize.store.reader import Files

# More than keep the drive busy: some of them wait for the interpreter while the model computes.
READERS = 8
PIECE = 8 << 20  # bytes of one read: large enough to keep a drive busy, small enough to share it between readers
UNREAD = 2  # units that are given spare room before the readers come to them; one more would be memory that waits

Stay = Literal["keep", "once", "stream"]
# absent -> loading -> ready -> held -> absent (stream), kept (keep), done (once). A unit that is no longer wanted goes
# from ready to absent; from loading too, by way of dropped if a reader is still writing into its buffer.
State = Literal["absent", "loading", "dropped", "ready", "held", "kept", "done"]


@dataclass(frozen=True, slots=True)
class Cargo:
    """What is to be read for one unit, and for how long.

    ``keep``: into memory of its own, once. ``once``: through the ring, once (it is copied on from there).
    ``stream``: through the ring, every time. ``rest_bytes``: what is copied on takes that much of the same memory.
    """

    name: str
    layout: Layout
    stay: Stay
    rest_bytes: int = 0


@dataclass(slots=True)
class StreamStats:
    """What a stream has done so far."""

    bytes_read: int = 0
    waited_s: float = 0.0  # that acquires had to wait for the drive
    mispredicted: int = 0  # acquires of a unit that was not expected, and so not yet being read


@dataclass(frozen=True, slots=True)
class _Piece:
    extent: Extent
    start: int  # within the extent


@dataclass(slots=True, eq=False)
class _Entry:
    cargo: Cargo
    stay: Stay
    successor: int
    surprise: int | None = None  # what came last time, instead of the successor
    state: State = "absent"
    memory: Memory | None = None
    unread: deque[_Piece] = field(default_factory=deque)
    reading: int = 0  # pieces that readers are at
    own: bool = False  # whether its memory is its own, none of the ring's buffers

    @property
    def settled(self) -> bool:
        """Whether it will not be asked for again."""
        return self.state in ("kept", "done")

    @property
    def in_ring(self) -> bool:
        """Whether it holds one of the ring's buffers."""
        return self.memory is not None and not self.own


class Stream:
    """Loads cargo ahead of its use. One thread at a time acquires and releases; any thread may close.

    ``slots`` buffers of ``slot_bytes`` are the ring. Raises OutsizeError for cargo that is larger than they are.
    """

    def __init__(
        self, files: Files, cargo: Sequence[Cargo], *, slots: int, slot_bytes: int, readers: int = READERS
    ) -> None:
        self.stats = StreamStats()
        self._files = files
        self._entries = [_Entry(c, c.stay, (i + 1) % len(cargo)) for i, c in enumerate(cargo)]
        passing = [c for c in cargo if c.stay != "keep"]
        for one in passing:
            if one.layout.nbytes > slot_bytes or not slots:
                raise OutsizeError(
                    f"{one.name} does not pass through the ring",
                    need=f"{one.layout.nbytes} bytes",
                    have=f"{slots} buffers of {slot_bytes} bytes",
                )
        self._slots = slots
        self._free = [Memory(slot_bytes) for _ in range(slots)] if passing else []
        self._used: list[Memory] = []  # in spare room, and read into before: the system need not clear it again
        self._position = 0  # the unit that is held, or that is expected next
        self._ahead: list[_Entry] = []  # what is expected from here, in order
        self._last: int | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read_pieces, name=f"outsize-reader-{i}", daemon=True) for i in range(readers)
        ]

    def start(self, after_last: int = 0) -> None:
        """Begins to read, in the order of the cargo; ``after_last`` is the first guess at what follows the last."""
        with self._changed:
            if self._entries:
                self._entries[-1].successor = after_last
            self._fill()
        for thread in self._threads:
            thread.start()

    def acquire(self, index: int) -> Memory:
        """The memory that holds a unit's bytes, once they are there. Held until ``release``.

        Raises what the readers ran into (ModelChanged, DamagedModel), and OutsizeError after ``close`` and where all
        buffers are held at the same time.
        """
        entry = self._entries[index]
        with self._changed:
            self._raise_if_over()
            if not entry.settled and entry.state != "held":
                self._learn(index)
                self._position = self._last = index
                self._fill()
                self._wait_for(entry)
                entry.state = "held"
            if entry.memory is None:
                raise OutsizeError(f"{entry.cargo.name} has been passed on already")
            return entry.memory

    def release(self, index: int) -> None:
        """Gives a unit's buffer back to the ring; memory that is kept stays as it is."""
        with self._changed:
            entry = self._entries[index]
            if entry.state != "held":
                return
            if entry.stay == "keep":
                entry.state = "kept"
            else:
                self._recycle(entry, "done" if entry.stay == "once" else "absent")
            if self._last is not None:  # not this one: another may have been asked for while it was held
                self._position = self._expected_after(self._last)
            self._fill()

    def stream_from_now(self, index: int) -> None:
        """Turns a unit that was to be copied on into one that is read every time: it is larger than was thought."""
        with self._changed:
            self._entries[index].stay = "stream"

    def close(self) -> None:
        """Stops the readers and lets go of all memory; acquires raise from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()
        with self._changed:
            for entry in self._entries:
                entry.memory = None
            self._free.clear()
            self._used.clear()

    @property
    def loaded(self) -> int:
        """Bytes of cargo that have arrived and stay."""
        stays = [e for e in self._entries if e.stay != "stream" and e.state in ("ready", "held", "kept", "done")]
        return sum(entry.cargo.layout.nbytes for entry in stays)

    # --- what comes next; all with the lock held ---

    def _learn(self, index: int) -> None:
        """Compares what is asked for with what was expected."""
        if self._last is None:
            return
        before = self._entries[self._last]
        if self._expected_after(self._last) == index:
            before.surprise = None
            return
        self.stats.mispredicted += self._entries[index].state == "absent"
        if before.surprise == index:
            before.successor, before.surprise = index, None
        else:
            before.surprise = index

    def _expected_after(self, index: int) -> int:
        """The next unit that will be asked for: units that are settled are not asked for again."""
        following = self._entries[index].successor
        for _ in self._entries:
            if not self._entries[following].settled:
                break
            following = self._entries[following].successor
        return following

    def _fill(self) -> None:
        """Gives the ring's buffers to what comes next, and takes them from what does not come soon."""
        self._ahead = self._look_ahead()
        held = sum(e.in_ring and e.state == "held" for e in self._entries)
        self._begin_in_spare_room()
        coming = [e for e in self._ahead if e.stay != "keep" and not e.own and e.state not in ("held", "done")]
        wanted = coming[: max(self._slots - held, 0)]
        for entry in self._entries:
            if entry.in_ring and entry.state in ("ready", "loading") and entry not in wanted:
                self._drop(entry)
        for entry in self._ahead:
            if entry.state == "absent" and entry.stay == "keep":
                entry.own = True
                self._begin(entry, Memory(entry.cargo.layout.nbytes))
        for entry in wanted:
            if entry.state == "absent" and self._free:
                self._begin(entry, self._free.pop())

    def _begin_in_spare_room(self) -> None:
        """Reads what is copied on into the room of what has not been copied on yet: the ring alone would be narrow.

        When a unit is copied, all before it have been, and those after it may be there already. Whichever it is, copies
        and what waits never take more than all copies will. Memory that was copied from is read into again.
        """
        pending = [e for e in self._ahead if e.stay == "once" and e.state != "done"]
        after = sum(e.cargo.rest_bytes for e in pending)
        unread = sum(bool(e.unread) for e in pending if e.own)
        self._trim_used(after, pending)
        room = after
        for entry in pending:
            after -= entry.cargo.rest_bytes
            room = min(room, after)  # what is copied by then is all but these
            if entry.state == "absent":
                if not entry.cargo.rest_bytes or unread >= UNREAD:
                    return
                memory = self._spare(entry.cargo.layout.nbytes, room)
                if memory is None:
                    return
                entry.own, unread = True, unread + 1
                self._begin(entry, memory)
            if entry.own and entry.memory is not None:
                room -= entry.memory.nbytes

    def _trim_used(self, room: int, pending: Sequence[_Entry]) -> None:
        """Lets go of memory that was copied from, where the next copy needs its room."""
        room -= pending[0].cargo.rest_bytes if pending else 0
        room -= sum(e.memory.nbytes for e in pending if e.own and e.memory is not None)
        while self._used and sum(memory.nbytes for memory in self._used) > room:
            self._used.pop()

    def _spare(self, size: int, room: int) -> Memory | None:
        """Memory of that size within the room, one that was used before if there is; None where there is no room."""
        for memory in self._used:
            if size <= memory.nbytes <= min(2 * size, room):
                self._used.remove(memory)
                return memory
        return Memory(size) if size + sum(memory.nbytes for memory in self._used) <= room else None

    def _look_ahead(self) -> list[_Entry]:
        """The units in the order in which they are expected, from here; those that stay and are not expected last."""
        seen: dict[int, None] = {}
        index = self._position
        while index not in seen and self._entries:
            seen[index] = None
            index = self._entries[index].successor
        rest = [e for i, e in enumerate(self._entries) if i not in seen and e.stay == "keep"]
        return [self._entries[i] for i in seen] + rest

    def _begin(self, entry: _Entry, memory: Memory) -> None:
        entry.memory, entry.state = memory, "loading"
        for extent in entry.cargo.layout.extents:
            entry.unread.extend(_Piece(extent, start) for start in range(0, extent.length, PIECE))
        if not entry.unread:
            entry.state = "ready"
        self._changed.notify_all()

    def _drop(self, entry: _Entry) -> None:
        """Takes the buffer of a unit that was read for nothing, as soon as no reader writes into it."""
        entry.unread.clear()
        if entry.reading:
            entry.state = "dropped"
        else:
            self._recycle(entry, "absent")

    def _recycle(self, entry: _Entry, state: State) -> None:
        assert entry.memory is not None
        entry.state = state
        (self._used if entry.own else self._free).append(entry.memory)
        entry.memory, entry.own = None, False
        if all(e.stay == "keep" or e.state == "done" for e in self._entries):
            self._free.clear()  # the ring has done its work: its memory goes
            self._used.clear()

    def _wait_for(self, entry: _Entry) -> None:
        began = None
        while entry.state != "ready":
            self._raise_if_over()
            others = [e for e in self._entries if e.in_ring and e.state == "held"]
            if entry.state == "absent" and len(others) >= self._slots:
                raise OutsizeError(f"no buffer for {entry.cargo.name}: all {self._slots} are in use at the same time")
            began = began or time.monotonic()
            self._changed.wait()
        if began is not None:
            self.stats.waited_s += time.monotonic() - began

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise OutsizeError("the model was closed", remedy="load it again")

    # --- the reader threads ---

    def _read_pieces(self) -> None:
        """The life of a reader thread: the first unread piece on the way ahead, until the stream is over."""
        try:
            while (taken := self._take()) is not None:
                entry, piece, memory = taken
                got = self._read(piece, memory)
                if self._was_last(entry, got):
                    self._files.check(entry.cargo.layout.files)
                    self._finish(entry)
                del taken, memory  # a thread that waits must not keep a buffer alive
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to the thread that computes
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self) -> tuple[_Entry, _Piece, Memory] | None:
        with self._changed:
            while not self._closed and self._error is None:
                for entry in self._ahead:
                    if entry.unread and entry.memory is not None:
                        entry.reading += 1
                        return entry, entry.unread.popleft(), entry.memory
                self._changed.wait()
            return None

    def _read(self, piece: _Piece, memory: Memory) -> int:
        extent = piece.extent
        length = min(PIECE, extent.length - piece.start)
        needed = min(length, extent.needed - piece.start)
        at = extent.position + piece.start
        return self._files.read_into(extent.file, extent.offset + piece.start, memory.view[at : at + length], needed)

    def _was_last(self, entry: _Entry, got: int) -> bool:
        """Counts a piece as read. After the last one, the unit still counts as being read until it has been checked."""
        with self._changed:
            self.stats.bytes_read += got
            if entry.reading == 1 and not entry.unread:
                return True
            entry.reading -= 1
            return False

    def _finish(self, entry: _Entry) -> None:
        with self._changed:
            entry.reading -= 1
            if entry.state == "dropped":
                self._recycle(entry, "absent")
                self._fill()
            else:
                entry.state = "ready"
                self._begin_in_spare_room()
            self._changed.notify_all()
