"""Weight groups on their way from the drive: what the sweep needs next is read before it asks.

A few threads read in chunks of a few MB. Groups that stay in RAM as they are in the files are read into memory of their
own, once; the others pass through a ring of equal buffers. A group that is encoded into something smaller before it
stays passes through the room that the smaller form will take, as long as there is enough of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outsize.errors import OutsizeError
from outsize.planner.weight_group import WeightGroup
from outsize.store.access_order import AccessOrder
from outsize.store.buffer import Memory
from outsize.store.chunk_readers import READERS, ChunkReaders, Load
from outsize.store.layout import Layout
from outsize.store.reader import Files
from outsize.store.trace import Trace

UNREAD = 2  # groups that get spare room before the readers come to them; more would be memory that waits

# absent -> loading -> ready -> held -> absent (streamed), kept (in place), done (passed on to where it stays). A group
# that is no longer wanted goes from ready to absent; from loading too, by way of dropped if a reader still writes into
# its buffer.
State = Literal["absent", "loading", "dropped", "ready", "held", "kept", "done"]


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream has done so far."""

    bytes_read: int
    waited_s: float  # that acquires had to wait for the drive
    mispredicted: int  # acquires of a group that was not expected, and so not being read yet


@dataclass(slots=True, eq=False)
class _Entry:
    group: WeightGroup
    layout: Layout
    streamed: bool
    state: State = "absent"
    memory: Memory | None = None
    load: Load | None = None  # while it is read
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
        self.trace = trace
        self._mispredicted = 0
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
        self._readers = ChunkReaders(files, self, "reader", readers, trace)
        self._changed = self._readers.changed

    def start(self, after_last: int = 0) -> None:
        """Begins to read, in the order of the groups; ``after_last`` is the first guess at what follows the last."""
        with self._changed:
            self._order.follow_last_with(after_last)
            self._fill()
        self._readers.start()

    def acquire(self, index: int) -> Memory:
        """The memory that holds a group's bytes, once they are there. Held until ``release``.

        Raises what the readers ran into (ModelChanged, DamagedModel), and OutsizeError after ``close`` and where all
        buffers are held at the same time.
        """
        entry = self._entries[index]
        with self._changed:
            self._readers.raise_if_over()
            if not entry.settled and entry.state != "held":
                # What stays in memory may be asked for out of turn, once: a tied embedding begins a pass and stands
                # with the head at its end. It is read at once, and what was read ahead still comes next.
                self._out_of_turn = entry if entry.group.in_place and not self._order.expects(index) else None
                if self._out_of_turn is None and not self._order.asked_for(index):
                    self._mispredicted += entry.state == "absent"
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
        self._readers.close()
        with self._changed:
            for entry in self._entries:
                entry.memory = entry.load = None
            self._free.clear()
            self._used.clear()

    @property
    def stats(self) -> StreamStats:
        """What has happened so far."""
        return StreamStats(self._readers.bytes_read, self._readers.waited_s, self._mispredicted)

    @property
    def loaded_bytes(self) -> int:
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
        unread = sum(e.load is not None and bool(e.load.unread) for e in pending if e.own)
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
        entry.load = Load(entry.group.module, entry.layout, memory.view)
        if not entry.load.unread:
            entry.state, entry.load = "ready", None
        self._changed.notify_all()

    def _drop(self, entry: _Entry) -> None:
        """Takes the buffer of a group that was read for nothing, as soon as no reader writes into it."""
        if entry.load is not None:
            entry.load.unread.clear()
        if entry.load is not None and entry.load.reading:
            entry.state = "dropped"
        else:
            self._recycle(entry, "absent")

    def _recycle(self, entry: _Entry, state: State) -> None:
        assert entry.memory is not None
        entry.state = state
        (self._used if entry.own else self._free).append(entry.memory)
        entry.memory, entry.load, entry.own = None, None, False
        if all(e.group.in_place or e.state == "done" for e in self._entries):
            self._free.clear()  # the ring has done its work: its memory goes
            self._used.clear()

    def _wait_for(self, entry: _Entry) -> None:
        there = entry.state == "ready"
        if there:
            return
        with self._readers.waiting(entry.group.module):
            while entry.state != "ready":
                self._readers.raise_if_over()
                others = [e for e in self._entries if e.in_ring and e.state == "held"]
                if entry.state == "absent" and len(others) >= self._slots:
                    what = f"no buffer for {entry.group.module}: all {self._slots} are in use at the same time"
                    raise OutsizeError(what)
                self._changed.wait()

    # --- what the readers ask and say ---

    def next_load(self) -> Load | None:
        """As in Work: the first on the way ahead."""
        return next((e.load for e in self._ahead if e.load is not None and e.load.unread), None)

    def loaded(self, load: Load) -> None:
        """As in Work."""
        entry = next(entry for entry in self._entries if entry.load is load)
        entry.load = None
        if entry.state == "dropped":
            self._recycle(entry, "absent")
            self._fill()
        else:
            entry.state = "ready"
            self._begin_in_spare_room()
