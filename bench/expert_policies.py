"""Caches of experts, by number, each with a rule for what leaves when it is full.

``use(ids)`` takes what one layer needs of one token and returns how many of them were there; the others are read and
take the place of something else. ``scan(ids, tail)`` takes what a prompt needs of one layer; ``tail`` are the experts
of its last tokens. ``reads`` counts what was read, wanted or not.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Cache:
    """What all of them have: room for ``capacity`` experts."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.reads = capacity, 0

    def use(self, ids: Sequence[int]) -> int:
        raise NotImplementedError

    def scan(self, ids: Sequence[int], tail: Sequence[int]) -> int:
        """A prompt's experts as if they were a token's."""
        return self.use(ids)

    def guess(self, ids: Sequence[int]) -> None:
        """What the next layer may need; only look-ahead listens."""


class LRU(Cache):
    """The least recently used leaves."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.kept: OrderedDict[int, None] = OrderedDict()

    def use(self, ids: Sequence[int]) -> int:
        kept = self.kept
        hits = 0
        for one in ids:
            if one in kept:
                kept.move_to_end(one)
                hits += 1
        if hits < len(ids):
            for one in ids:
                kept[one] = None
            while len(kept) > self.capacity:
                kept.popitem(last=False)
        self.reads += len(ids) - hits
        return hits


class TokenLRU(Cache):
    """LRU that counts in tokens: what will not have been used for most tokens when its layer comes next leaves.

    Of equals the one whose layer comes last. Plain LRU throws out what the next layers are about to need, because they
    are those that were used longest ago. A list per layer, and one room for all.

    ``scans`` decides what prompts do. "newest": what they read is the most recently used. "first to go": it only fills
    free room, and what they find there keeps its place. "tail": the same, but the experts of their last tokens count as
    used.
    """

    def __init__(self, capacity: int, experts: int, layers: int, scans: str = "newest") -> None:
        super().__init__(capacity)
        self.experts, self.scans = experts, scans
        self.lists: list[OrderedDict[int, int]] = [
            OrderedDict() for _ in range(layers)
        ]  # expert: token of its last use
        self.held, self.token, self.layer = 0, 0, -1

    def use(self, ids: Sequence[int]) -> int:
        layer = ids[0] // self.experts
        self.token += layer <= self.layer
        self.layer = layer
        return self._touch(ids, layer)

    def scan(self, ids: Sequence[int], tail: Sequence[int]) -> int:
        if self.scans == "newest":
            return self.use(ids)
        own = self.lists[ids[0] // self.experts]
        missed = [one for one in ids if one not in own]
        reads = self.reads + len(missed)
        for one in missed[: self.capacity - self.held]:
            own[one] = -1
            own.move_to_end(one, last=False)
            self.held += 1
        if self.scans == "tail":
            self.use(tail)
        self.reads = reads  # the last tokens' experts among them
        return len(ids) - len(missed)

    def _touch(self, ids: Sequence[int], now: int) -> int:
        """Marks as used, makes room; ``now``: the layer that is computing."""
        own = self.lists[ids[0] // self.experts]
        hits = 0
        for one in ids:
            if one in own:
                hits += 1
                own.move_to_end(one)
            own[one] = self.token
        self.reads += len(ids) - hits
        self.held += len(ids) - hits
        while self.held > self.capacity:
            self._drop(now)
        return hits

    def _drop(self, now: int) -> None:
        layers = len(self.lists)
        _, _, layer = max(
            (self.token + (layer <= now) - next(iter(kept.values())), (layer - now - 1) % layers, layer)
            for layer, kept in enumerate(self.lists)
            if kept
        )
        self.lists[layer].popitem(last=False)
        self.held -= 1


class Partitions(Cache):
    """An LRU cache per layer, of equal shares."""

    def __init__(self, capacity: int, experts: int, layers: int) -> None:
        super().__init__(capacity)
        self.experts = experts
        self.parts = [LRU(capacity // layers + (layer < capacity % layers)) for layer in range(layers)]

    def use(self, ids: Sequence[int]) -> int:
        part = self.parts[ids[0] // self.experts]
        hits = part.use(ids)
        self.reads += len(ids) - hits
        return hits


class Pinned(Cache):
    """``pinned`` never leave; the rest of the room is ``rest``."""

    def __init__(self, pinned: Iterable[int], rest: Cache) -> None:
        self.pinned = frozenset(pinned)
        super().__init__(len(self.pinned) + rest.capacity)
        self.rest = rest

    def use(self, ids: Sequence[int]) -> int:
        others = [one for one in ids if one not in self.pinned]
        hits = self.rest.use(others) if others else 0
        self.reads += len(others) - hits
        return len(ids) - len(others) + hits


class LFU(Cache):
    """The least often used leaves; a use counts half after ``half_life`` tokens. Counts outlast their experts.

    What was read but counts less than all that is there is not kept.
    """

    def __init__(self, capacity: int, half_life: float, layers: int) -> None:
        super().__init__(capacity)
        self.counts: dict[int, float] = {}
        self.kept: set[int] = set()
        self.order: list[tuple[float, int]] = []  # a heap; counts in it may be old, and so too low
        self.weight, self.growth = 1.0, 2.0 ** (1.0 / half_life / layers)

    def use(self, ids: Sequence[int]) -> int:
        self.weight *= self.growth  # in place of making all counts smaller
        hits = 0
        for one in ids:
            self.counts[one] = self.counts.get(one, 0.0) + self.weight
            if one in self.kept:
                hits += 1
            else:
                self.kept.add(one)
                heapq.heappush(self.order, (self.counts[one], one))
        while len(self.kept) > self.capacity:
            count, one = heapq.heappop(self.order)
            if count < self.counts[one]:
                heapq.heappush(self.order, (self.counts[one], one))
            else:
                self.kept.remove(one)
        self.reads += len(ids) - hits
        return hits


class LookAhead(TokenLRU):
    """The same, and it reads what is guessed for the next layer before that layer says what it needs."""

    def guess(self, ids: Sequence[int]) -> None:
        self._touch(ids, self.layer)


class Belady(Cache):
    """What is used again last leaves: the most that any cache can do, and only if it knows what will come."""

    def __init__(self, capacity: int, sequence: Sequence[Sequence[int]]) -> None:
        super().__init__(capacity)
        later: dict[int, int] = {}
        self.next: list[list[int]] = []
        for place in range(len(sequence) - 1, -1, -1):
            ids = sequence[place]
            self.next.append([later.get(one, len(sequence)) for one in ids])
            later.update(dict.fromkeys(ids, place))
        self.due: dict[int, int] = {}  # what is kept, and when it is used again
        self.order: list[tuple[int, int]] = []

    def use(self, ids: Sequence[int]) -> int:
        hits = 0
        for one, again in zip(ids, self.next.pop(), strict=True):
            hits += one in self.due
            self.due[one] = again
            heapq.heappush(self.order, (-again, one))
        while len(self.due) > self.capacity:
            again, one = heapq.heappop(self.order)
            if self.due.get(one) == -again:
                del self.due[one]
        self.reads += len(ids) - hits
        return hits
