"""Weight groups on their way from the drive: what the sweep needs next is read before it asks.

A few threads read in chunks of a few MB. Groups that stay in RAM as they are in the files are read into memory of their
own, once; the others pass through a ring of equal buffers. A group that is encoded into something smaller before it
stays passes through the room that the smaller form will take, as long as there is enough of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outsize.errors import OutsizeError
from outsize.planner.weight_group import WeightGroup
from outsize.store.access_order import AccessOrder
from outsize.store.buffer import Memory
from outsize.store.layout import Extent, Layout
from outsize.store.reader import Files
from outsize.store.trace import Trace

# More than keep the drive busy: some of them wait for the interpreter while the model computes.
READERS = 8
CHUNK = 8 << 20  # bytes of one read: large enough to keep a drive busy, small enough to share it between readers
UNREAD = 2  # groups that get spare room before the readers come to them; more would be memory that waits

# absent -> loading -> ready -> held -> absent (streamed), kept (in place), done (passed on to where it stays). A group
# that is no longer wanted goes from ready to absent; from loading too, by way of dropped if a reader still writes into
# its buffer.
State = Literal["absent", "loading", "dropped", "ready", "held", "kept", "done"]


@dataclass(slots=True)
class StreamStats:
    """What a stream has done so far."""

    bytes_read: int = 0
    waited_s: float = 0.0  # that acquires had to wait for the drive
    mispredicted: int = 0  # acquires of a group that was not expected, and so not being read yet


@dataclass(frozen=True, slots=True)
class _Chunk:
    extent: Extent
    start: int  # within the extent


@dataclass(slots=True, eq=False)
class _Entry:
    group: WeightGroup
    layout: Layout
    streamed: bool
    state: State = "absent"
    memory: Memory | None = None
    unread: deque[_Chunk] = field(default_factory=deque)
    reading: int = 0  # chunks that readers are at
    own: bool = False  # whether its memory is its own, none of the ring's buffers

    @property
    def passes_once(self) -> bool:
        """Whether it goes through a buffer once, on its way to where it stays."""
        return not self.streamed and not self.group.in_place

    @property
    def copy_bytes(self) -> int:
        """Bytes of RAM that its copy takes once it was passed on."""
        return self.group.rest_bytes if self.group.tier == "ram" else 0

    @property
    def settled(self) -> bool:
        """Whether it will not be asked for again."""
        return self.state in ("kept", "done")

    @property
    def in_ring(self) -> bool:
        """Whether it holds one of the ring's buffers."""
        return self.memory is not None and not self.own


class Stream:
    """Loads weight groups ahead of their use. One thread at a time acquires and releases; any thread may close.

    ``groups`` stand in the order of the sweep, each with its layout. ``slots`` buffers of ``slot_bytes`` are the ring.
    ``trace`` gets what is read and waited for.
    Raises OutsizeError for a group that is larger than they are.
    """

    def __init__(
        self,
        files: Files,
        groups: Sequence[tuple[WeightGroup, Layout]],
        *,
        slots: int,
        slot_bytes: int,
        readers: int = READERS,
        trace: Trace | None = None,
    ) -> None:
        self.stats = StreamStats()
        self.trace = trace
        self._files = files
        self._entries = [_Entry(group, layout, group.streamed) for group, layout in groups]
        self._order = AccessOrder(len(groups), lambda index: self._entries[index].settled)
        passing = [entry for entry in self._entries if not entry.group.in_place]
        for entry in passing:
            if entry.layout.nbytes > slot_bytes or not slots:
                raise OutsizeError(
                    f"{entry.group.module} does not pass through the ring",
                    need=f"{entry.layout.nbytes} bytes",
                    have=f"{slots} buffers of {slot_bytes} bytes",
                )
        self._slots = slots
        self._free = [Memory(slot_bytes) for _ in range(slots)] if passing else []
        self._used: list[Memory] = []  # in spare room, and read into before: the system need not clear it again
        self._ahead: list[_Entry] = []  # what is expected from here, in order
        self._out_of_turn: _Entry | None = None  # that somebody waits for
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read_chunks, name=f"outsize-reader-{i}", daemon=True) for i in range(readers)
        ]

    def start(self, after_last: int = 0) -> None:
        """Begins to read, in the order of the groups; ``after_last`` is the first guess at what follows the last."""
        with self._changed:
            self._order.follow_last_with(after_last)
            self._fill()
        for thread in self._threads:
            thread.start()

    def acquire(self, index: int) -> Memory:
        """The memory that holds a group's bytes, once they are there. Held until ``release``.

        Raises what the readers ran into (ModelChanged, DamagedModel), and OutsizeError after ``close`` and where all
        buffers are held at the same time.
        """
        entry = self._entries[index]
        with self._changed:
            self._raise_if_over()
            if not entry.settled and entry.state != "held":
                # What stays in memory may be asked for out of turn, once: a tied embedding begins a pass and stands
                # with the head at its end. It is read at once, and what was read ahead still comes next.
                self._out_of_turn = entry if entry.group.in_place and not self._order.expects(index) else None
                if self._out_of_turn is None and not self._order.asked_for(index):
                    self.stats.mispredicted += entry.state == "absent"
                self._fill()
                self._wait_for(entry)
                self._out_of_turn = None
                entry.state = "held"
            if entry.memory is None:
                raise OutsizeError(f"{entry.group.module} has been passed on already")
            return entry.memory

    def release(self, index: int) -> None:
        """Gives a group's buffer back to the ring; memory that is kept stays as it is."""
        with self._changed:
            entry = self._entries[index]
            if entry.state != "held":
                return
            if entry.group.in_place:
                entry.state = "kept"
            else:
                self._recycle(entry, "absent" if entry.streamed else "done")
            self._order.released()
            self._fill()

    def stream_from_now(self, index: int) -> None:
        """Streams a group that was to be passed on once: its copy would be larger than planned."""
        with self._changed:
            self._entries[index].streamed = True

    def read_past_end(self, yes: bool) -> None:
        """Whether another sweep is expected; if not, nothing is read ahead that comes before what is being used."""
        with self._changed:
            self._order.past_end = yes

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
        """Bytes that have arrived and stay."""
        stays = [e for e in self._entries if not e.streamed and e.state in ("ready", "held", "kept", "done")]
        return sum(entry.layout.nbytes for entry in stays)

    # --- what to read; all with the lock held ---

    def _fill(self) -> None:
        """Gives the ring's buffers to what comes next, and takes them from what does not come soon."""
        self._ahead = self._look_ahead()
        held = sum(e.in_ring and e.state == "held" for e in self._entries)
        self._begin_in_spare_room()
        coming = [e for e in self._ahead if not e.group.in_place and not e.own and e.state not in ("held", "done")]
        wanted = coming[: max(self._slots - held, 0)]
        for entry in self._entries:
            if entry.in_ring and entry.state in ("ready", "loading") and entry not in wanted:
                self._drop(entry)
        for entry in self._ahead:
            if entry.state == "absent" and entry.group.in_place:
                entry.own = True
                self._begin(entry, Memory(entry.layout.nbytes))
        for entry in wanted:
            if entry.state == "absent" and self._free:
                self._begin(entry, self._free.pop())

    def _begin_in_spare_room(self) -> None:
        """Reads what is passed on into the room of copies that are yet to be made: the ring alone would be narrow.

        When a group is copied, all before it have been, and those after it may be there already. Whichever it is,
        copies and what waits never take more than all copies will. Memory that was copied from is read into again.
        """
        pending = [e for e in self._ahead if e.passes_once and e.state != "done"]
        after = sum(e.copy_bytes for e in pending)
        unread = sum(bool(e.unread) for e in pending if e.own)
        self._trim_used(after, pending)
        room = after
        for entry in pending:
            after -= entry.copy_bytes
            room = min(room, after)  # what is copied by then is all but these
            if entry.state == "absent":
                if not entry.copy_bytes or unread >= UNREAD:
                    return
                memory = self._spare(entry.layout.nbytes, room)
                if memory is None:
                    return
                entry.own, unread = True, unread + 1
                self._begin(entry, memory)
            if entry.own and entry.memory is not None:
                room -= entry.memory.nbytes

    def _trim_used(self, room: int, pending: Sequence[_Entry]) -> None:
        """Lets go of memory that was copied from, where the next copy needs its room."""
        room -= pending[0].copy_bytes if pending else 0
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
        """The groups in the order in which they are expected; those that stay and are not expected come last."""
        expected = self._order.ahead()
        rest = set(range(len(self._entries))).difference(expected)
        ahead = [self._entries[i] for i in expected]
        ahead += [self._entries[i] for i in sorted(rest) if self._entries[i].group.in_place]
        if self._out_of_turn is not None:
            ahead.sort(key=lambda entry: entry is not self._out_of_turn)
        return ahead

    def _begin(self, entry: _Entry, memory: Memory) -> None:
        entry.memory, entry.state = memory, "loading"
        for extent in entry.layout.extents:
            entry.unread.extend(_Chunk(extent, start) for start in range(0, extent.length, CHUNK))
        if not entry.unread:
            entry.state = "ready"
        self._changed.notify_all()

    def _drop(self, entry: _Entry) -> None:
        """Takes the buffer of a group that was read for nothing, as soon as no reader writes into it."""
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
        if all(e.group.in_place or e.state == "done" for e in self._entries):
            self._free.clear()  # the ring has done its work: its memory goes
            self._used.clear()

    def _wait_for(self, entry: _Entry) -> None:
        began = None
        while entry.state != "ready":
            self._raise_if_over()
            others = [e for e in self._entries if e.in_ring and e.state == "held"]
            if entry.state == "absent" and len(others) >= self._slots:
                raise OutsizeError(f"no buffer for {entry.group.module}: all {self._slots} are in use at the same time")
            began = began or time.monotonic()
            self._changed.wait()
        if began is not None:
            self.stats.waited_s += time.monotonic() - began
            if self.trace is not None:
                self.trace.add("wait", entry.group.module, began)

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise OutsizeError("the model was closed", remedy="load it again")

    # --- the reader threads ---

    def _read_chunks(self) -> None:
        """The life of a reader thread: the first unread chunk on the way ahead, until the stream is over."""
        try:
            while (taken := self._take()) is not None:
                entry, chunk, memory = taken
                began = time.monotonic()
                got = self._read(chunk, memory)
                if self.trace is not None:
                    self.trace.add("read", entry.group.module, began, got)
                if self._was_last(entry, got):
                    self._files.check(entry.layout.files)
                    self._finish(entry)
                del taken, memory  # a thread that waits must not keep a buffer alive
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to the thread that computes
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self) -> tuple[_Entry, _Chunk, Memory] | None:
        with self._changed:
            while not self._closed and self._error is None:
                for entry in self._ahead:
                    if entry.unread and entry.memory is not None:
                        entry.reading += 1
                        return entry, entry.unread.popleft(), entry.memory
                self._changed.wait()
            return None

    def _read(self, chunk: _Chunk, memory: Memory) -> int:
        extent = chunk.extent
        length = min(CHUNK, extent.length - chunk.start)
        needed = min(length, extent.needed - chunk.start)
        at = extent.position + chunk.start
        return self._files.read_into(extent.file, extent.offset + chunk.start, memory.view[at : at + length], needed)

    def _was_last(self, entry: _Entry, got: int) -> bool:
        """Counts a chunk as read. After the last, the group still counts as being read until it is checked."""
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
