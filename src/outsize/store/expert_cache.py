"""Single experts in memory: read when tokens are sent to them, kept while there is room.

Memory is cut into equal slots, each for one expert of any layer. What goes first is what will not have been used for
most tokens when its layer comes next (docs/decisions/0011). A pass with so many tokens that nearly all experts are used
(a prompt, a dataset) is read ahead, layer by layer, and what it reads goes before all that single tokens have used, so
that a long prompt does not empty the cache.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from outsize.errors import OutsizeError
from outsize.store.buffer import Memory
from outsize.store.chunk_readers import READERS, ChunkReaders, Load
from outsize.store.layout import Layout
from outsize.store.reader import Files
from outsize.store.trace import Trace

LAYERS_AHEAD = 2  # that are looked through for experts to read ahead
AHEAD_BYTES = 256 << 20  # most that is read ahead: what a drive reads while a layer's attention computes

State = Literal["absent", "loading", "ready"]


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """What a cache has done so far. ``hits``: uses of an expert that was there; ``misses``: that had to be read."""

    hits: int
    misses: int
    bytes_read: int
    waited_s: float


@dataclass(slots=True, eq=False)
class CachedExpert:
    """One expert: its number within its layer, where its bytes are, and ``weights``: what its user made of them.

    Whoever has put its bytes elsewhere, and needs them here no more, sets ``elsewhere``.
    """

    layer: int
    number: int
    layout: Layout
    state: State = "absent"
    view: memoryview | None = None
    weights: Any = None
    elsewhere: bool = False
    pinned: bool = False  # somebody computes with it, or is about to
    scanned: bool = False  # it was read for a pass over all experts
    used: int = 0  # the token, or pass of another kind, that used it last
    load: Load | None = None  # while it is read


class ExpertCache:
    """Experts of all layers, of which ``slots`` at a time are in memory. One thread fetches; any may close.

    ``layouts``: of every expert of every layer; each fits into ``slot_bytes``. ``trace`` gets what is read.
    Raises OutsizeError where one does not.
    """

    def __init__(
        self,
        files: Files,
        layouts: Sequence[Sequence[Layout]],
        *,
        slots: int,
        slot_bytes: int,
        readers: int = READERS,
        trace: Trace | None = None,
    ) -> None:
        largest = max((layout.nbytes for layer in layouts for layout in layer), default=0)
        if largest > slot_bytes or slots < 1:
            have = f"{slots} slots of {slot_bytes} bytes"
            raise OutsizeError("an expert does not fit into the cache", need=f"{largest} bytes", have=have)
        self._hits = self._misses = 0
        self._slots = slots
        self._layers = [[CachedExpert(i, j, one) for j, one in enumerate(layer)] for i, layer in enumerate(layouts)]
        self._memory: Memory | None = Memory(slots * slot_bytes)
        whole = self._memory.view
        self._free = [whole[i * slot_bytes : (i + 1) * slot_bytes] for i in reversed(range(slots))]
        self._most_ahead = max(min(slots // 4, AHEAD_BYTES // slot_bytes), 1)
        # What is in memory: by layer, in order of use; what passes over all experts have read, the first to go last.
        self._used: list[OrderedDict[CachedExpert, None]] = [OrderedDict() for _ in layouts]
        self._scanned: OrderedDict[CachedExpert, None] = OrderedDict()
        self._pass, self._at = 0, -1  # which is underway, and the layer that it has come to
        self._held: Sequence[CachedExpert] = ()  # of the fetch that is underway
        self._ahead: dict[CachedExpert, None] = {}  # read ahead and not used yet
        self._queue: deque[CachedExpert] = deque()  # being read, or to be, the most urgent first
        self._loading: dict[int, CachedExpert] = {}  # by the identity of the load
        self._readers = ChunkReaders(files, self, "experts", readers, trace)
        self._changed = self._readers.changed
        self._readers.start()

    @property
    def stats(self) -> ExpertStats:
        """What has happened so far."""
        return ExpertStats(self._hits, self._misses, self._readers.bytes_read, self._readers.waited_s)

    def load(self, layers: Sequence[int]) -> None:
        """Begins to read the experts of these layers in order, as many as there is room for."""
        with self._changed:
            for expert in (one for layer in layers for one in self._layers[layer]):
                if not self._free:
                    return
                if expert.state == "absent":
                    self._begin(expert, urgent=False)

    def at_hand(self, layer: int, numbers: Sequence[int]) -> list[CachedExpert] | None:
        """The given experts if all of them are in memory, used by this pass; else None, and ``fetch`` has them.

        Whoever takes them asks for nothing else until they have computed.
        """
        experts = [self._layers[layer][number] for number in numbers]
        with self._changed:
            self._readers.raise_if_over()
            if any(expert.state != "ready" for expert in experts):
                return None
            self._come_to(layer)
            self._hits += len(experts)
            for expert in experts:
                self._touch(expert)
        return experts

    def fetch(self, layer: int, numbers: Sequence[int], *, scan: bool = False) -> Iterator[list[CachedExpert]]:
        """The given experts of a layer, as they are there; each stays until the next are asked for.

        ``scan``: in the order of ``numbers``, for a pass that uses nearly all: what follows is read ahead, and what is
        read is the first to go. Raises what the readers ran into (ModelChanged, DamagedModel), and OutsizeError after
        ``close``.
        """
        experts = [self._layers[layer][number] for number in numbers]
        with self._changed:
            self._come_to(layer)
        # So many at a time that there is room for those that come next; of a scan as few as keep the drive busy.
        window = self._most_ahead if scan else max(self._slots // 2, 1)
        for first in range(0, len(experts), window):
            some = experts[first : first + window]
            following = experts[first + window :] if scan else None
            with self._changed:
                self._readers.raise_if_over()
                missing = self._hold(some)
            pending = deque(some)
            try:
                while pending:
                    ready = self._wait_for(pending, missing, following)
                    yield ready
                    with self._changed:
                        self._readers.raise_if_over()
                        for expert in ready:
                            self._let_go(expert, scan=scan)
            finally:
                with self._changed:
                    if self._held is some:  # else it was given up, and another is underway
                        self._unpin()
        with self._changed:
            for expert in [e for e in self._ahead if e.layer <= layer]:  # it was not asked for
                del self._ahead[expert]

    def close(self) -> None:
        """Stops the readers and lets go of all memory; fetches raise from now on."""
        self._readers.close()
        with self._changed:
            for expert in (one for layer in self._layers for one in layer):
                expert.view = expert.weights = expert.load = None
            self._loading.clear()
            self._free.clear()
            for ready in (*self._used, self._scanned):
                ready.clear()
            self._memory = None

    # --- all with the lock held ---

    def _come_to(self, layer: int) -> None:
        if layer <= self._at:
            self._pass += 1
            self._ahead.clear()  # of a pass that was ended
        self._at = layer

    def _hold(self, experts: Sequence[CachedExpert]) -> deque[CachedExpert]:
        """Keeps those that are there or on their way, and nothing of a fetch before; returns the others."""
        self._unpin()
        self._held = experts
        missing = deque(expert for expert in experts if expert.state == "absent")
        for expert in experts:
            if expert.state != "absent":
                expert.pinned = True
                if expert.load is not None and expert.load.unread:  # it was read ahead, and is urgent now
                    self._queue.remove(expert)
                    self._insert(expert)
        read = sum(expert.state == "absent" or expert in self._ahead for expert in experts)
        self._misses += read
        self._hits += len(experts) - read
        for expert in experts:
            self._ahead.pop(expert, None)
        return missing

    def _unpin(self) -> None:
        for expert in self._held:
            expert.pinned = False
        self._held = ()

    def _wait_for(
        self,
        pending: deque[CachedExpert],
        missing: deque[CachedExpert],
        following: Sequence[CachedExpert] | None,
    ) -> list[CachedExpert]:
        """Takes those that are ready from ``pending``: at least one; in order, where there is a ``following``."""
        with self._changed:
            ready = self._advance(pending, missing, following)
            if not ready:
                with self._readers.waiting(f"experts of layer {pending[0].layer}"):
                    while not ready:
                        self._changed.wait()
                        ready = self._advance(pending, missing, following)
        return ready

    def _advance(
        self,
        pending: deque[CachedExpert],
        missing: deque[CachedExpert],
        following: Sequence[CachedExpert] | None,
    ) -> list[CachedExpert]:
        """Has as much read as there is room for, and takes what is ready from ``pending``."""
        self._readers.raise_if_over()
        scan = following is not None
        while missing and self._make_room():
            expert = missing.popleft()
            expert.pinned = True
            self._begin(expert, urgent=True, scan=scan)
        if following is not None and not missing:
            self._read_ahead(pending[0].layer, following)
        return _take_ready(pending, in_order=scan)

    def _let_go(self, expert: CachedExpert, *, scan: bool) -> None:
        """It was used: the last to go of its layer. To a pass over all experts, only what that has read was."""
        expert.pinned = False
        if expert.elsewhere:
            self._drop(expert)
        elif not scan:
            self._touch(expert)
        elif expert.scanned:
            self._scanned.move_to_end(expert)
        self._changed.notify_all()

    def _touch(self, expert: CachedExpert) -> None:
        """It is the last to go of its layer."""
        self._ahead.pop(expert, None)
        if expert.scanned:
            del self._scanned[expert]
            expert.scanned = False
            self._used[expert.layer][expert] = None
        expert.used = self._pass
        self._used[expert.layer].move_to_end(expert)

    def _read_ahead(self, layer: int, following: Sequence[CachedExpert]) -> None:
        """Begins to read what comes next: the rest of this layer, and the layers after it."""
        later = (one for of in self._layers[layer + 1 : layer + 1 + LAYERS_AHEAD] for one in of)
        for expert in (*following, *later):
            if len(self._ahead) >= self._most_ahead:
                return
            if expert.state == "absent" and not expert.elsewhere:
                if not self._make_room():
                    return
                self._ahead[expert] = None
                self._begin(expert, urgent=False, scan=True)

    def _make_room(self) -> bool:
        """Frees a slot, if none is free and one can be."""
        if self._free:
            return True
        victim = self._first_to_go()
        if victim is None:
            return False
        self._drop(victim)
        return True

    def _drop(self, expert: CachedExpert) -> None:
        """Frees the slot of one that is ready."""
        (self._scanned if expert.scanned else self._used[expert.layer]).pop(expert)
        self._ahead.pop(expert, None)
        assert expert.view is not None
        self._free.append(expert.view)
        expert.state, expert.view, expert.weights = "absent", None, None

    def _first_to_go(self) -> CachedExpert | None:
        idle = (e for e in reversed(self._scanned) if not e.pinned and e not in self._ahead)
        if (scanned := next(idle, None)) is not None:
            return scanned
        heads = (next((e for e in of if not e.pinned), None) for of in self._used)
        oldest = max((e for e in heads if e is not None), key=self._age, default=None)
        return oldest or next((e for e in self._scanned if not e.pinned), None)

    def _age(self, expert: CachedExpert) -> tuple[int, int]:
        """Passes that will not have used it when its layer comes next; of equals, how far away that layer is."""
        passed = expert.layer <= self._at
        return self._pass + passed - expert.used, (expert.layer - self._at - 1) % len(self._layers)

    def _begin(self, expert: CachedExpert, *, urgent: bool, scan: bool = False) -> None:
        expert.state, expert.view, expert.scanned = "loading", self._free.pop(), scan
        expert.load = Load(f"expert {expert.number} of layer {expert.layer}", expert.layout, expert.view)
        self._loading[id(expert.load)] = expert
        if urgent:
            self._insert(expert)
        else:
            self._queue.append(expert)
        self._changed.notify_all()

    def _insert(self, expert: CachedExpert) -> None:
        """After those that became urgent before, which are used in this order, and before all others."""
        place = next((i for i, other in enumerate(self._queue) if not other.pinned), len(self._queue))
        self._queue.insert(place, expert)

    # --- what the readers ask and say ---

    def next_load(self) -> Load | None:
        """As in Work: the most urgent."""
        while self._queue:
            load = self._queue[0].load
            if load is not None and load.unread:
                return load
            self._queue.popleft()  # its last chunk is being read
        return None

    def loaded(self, load: Load) -> None:
        """As in Work."""
        expert = self._loading.pop(id(load))
        expert.state, expert.load, expert.used = "ready", None, self._pass
        (self._scanned if expert.scanned else self._used[expert.layer])[expert] = None


def _take_ready(pending: deque[CachedExpert], *, in_order: bool) -> list[CachedExpert]:
    """Removes and returns those that are ready; in order, those before the first that is not."""
    ready = []
    if in_order:
        while pending and pending[0].state == "ready":
            ready.append(pending.popleft())
        return ready
    ready = [expert for expert in pending if expert.state == "ready"]
    if ready:
        others = [expert for expert in pending if expert.state != "ready"]
        pending.clear()
        pending.extend(others)
    return ready
