"""Rows into micro-batches: what computes together, and after which shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outsize.engine.prefix_cache import can_share_prefixes, counts_padding, drop_after, moves_with_length, prefix_cache
from outsize.engine.sequence import Row
from outsize.models.spec import ModelSpec
from outsize.planner.batches import MICRO_BATCH_TOKENS, MemoryUse, Room, Shape, memory_use_of, pack, room_of
from outsize.planner.plan import Plan
from outsize.planner.prefixes import Prefix, find_prefixes

MOST_DROPPED = 16  # rows that share a beginning which is dropped after them; it is kept for more until all are done
MOST_SCORED = 512  # positions of a micro-batch of several rows
DECODE_TOKENS = 4 * MICRO_BATCH_TOKENS  # of prompts that generate together: each further token reads all weights again


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What rows share: its cache and length; for each row its place in that cache, None where there is one."""

    cache: Any
    length: int
    places: tuple[int, ...] | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """A micro-batch: its rows, after a shared prefix. ``sharing``: how many micro-batches continue this one."""

    rows: Sequence[Row]
    shape: Shape
    shared: SharedPrefix | None = None
    sharing: int = 0


Group = tuple[Batch, ...]  # those that begin together


class Packer:
    """Packs rows for one model and plan."""

    def __init__(self, model: Any, spec: ModelSpec, plan: Plan) -> None:
        self._spec, self._plan = spec, plan
        self.room: Room = room_of(spec, plan)
        self._shares = can_share_prefixes(model, spec)
        self._alike = moves_with_length(model)
        self._counts_padding = counts_padding(model, spec)
        self._layers = len(spec.blocks)

    def memory_use(self, shape: Shape) -> MemoryUse:
        """What a micro-batch takes."""
        return memory_use_of(self._spec, self._plan, shape)

    def has_room(self, *shapes: Shape) -> bool:
        """Whether these can be underway together, with nothing else."""
        return self.room.fits([self.memory_use(shape) for shape in shapes])

    def for_scoring(self, rows: Sequence[Row]) -> list[Group]:
        """Shared prefixes before what shares them: beginnings of many rows, and within those the contexts of a few."""
        prefixes: tuple[Prefix, ...] = ()
        if self._shares:
            prefixes = find_prefixes([r.tokens for r in rows], [r.wants[0].start for r in rows], levels=2)
        alone = _outside(rows, prefixes)
        few = [p for p in prefixes if not p.inner and len(p.rows) <= MOST_DROPPED]
        groups = self._share_once(rows, few, None, alone)
        for prefix in prefixes:
            if prefix not in few:
                groups += self._share(rows, prefix, alone)
        return [*groups, *((batch,) for batch in self.pack(alone))]

    def for_generating(self, rows: Sequence[Row], *, gaps: bool) -> list[Group]:
        """Prefixes of many prompts. ``gaps``: padding may stand between a prefix and what continues it.

        Where padding would change answers, only prompts of one length are together.
        """
        alone_gaps = self._spec.encoder_decoder or not self._counts_padding  # an encoder's stands on the right
        gaps = gaps and alone_gaps
        prefixes: tuple[Prefix, ...] = ()
        if self._shares:
            found = find_prefixes([r.tokens for r in rows], [len(r.tokens) - 1 for r in rows], levels=1)
            prefixes = tuple(prefix for prefix in found if 2 * len(prefix.rows) > MOST_DROPPED)
        alone = _outside(rows, prefixes)
        groups: list[Group] = []
        for prefix in prefixes:
            groups += self._share(rows, prefix, alone, gaps=gaps)
        return [*groups, *((batch,) for batch in self.pack(alone, gaps=alone_gaps))]

    def pack(self, rows: Sequence[Row], shared: SharedPrefix | None = None, *, gaps: bool = True) -> list[Batch]:
        """Rows of similar length together; those that generate, with others that generate as much."""
        several = [
            [r for r in rows if r.new_tokens == new] for new in sorted({r.new_tokens for r in rows}, reverse=True)
        ]
        return [batch for some in several for batch in self._pack(some, shared, gaps=gaps)]

    def _pack(self, rows: Sequence[Row], shared: SharedPrefix | None, *, gaps: bool) -> list[Batch]:
        base, new = shared.length if shared else 0, rows[0].new_tokens
        scored = max(len(row.positions) for row in rows)

        def shape(count: int, tokens: int, positions: int) -> Shape:
            return Shape(count, tokens, new_tokens=new, past=base, scored=positions, cached=new > 0)

        def fits(count: int, tokens: int) -> bool:
            made = shape(count, tokens, count * scored)
            return (count == 1 or made.scored <= MOST_SCORED) and self.has_room(made)

        packs = pack(
            [row.length - base for row in rows],
            fits,
            most_tokens=DECODE_TOKENS if new else MICRO_BATCH_TOKENS,
            alike=self._alike or not gaps,
        )
        made = []
        for indexes in packs:
            some = [rows[i] for i in indexes]
            positions = sum(len(row.positions) for row in some)
            made.append(Batch(some, shape(len(some), some[0].length - base, positions), shared))
        return made

    def _share(self, rows: Sequence[Row], prefix: Prefix, alone: list[Row], *, gaps: bool = True) -> list[Group]:
        """A prefix that is kept until all that continue it are done, and those."""
        head = Row(rows[prefix.rows[0]].tokens[: prefix.length])
        shape = Shape(1, prefix.length, scored=1, cached=True)
        if not self.has_room(shape, shape):
            alone += [rows[i] for i in prefix.rows]
            return []
        shared = SharedPrefix(prefix_cache(self._layers, keep=True), prefix.length)
        outer = [rows[i] for i in prefix.outer_rows]
        after = self._share_once(rows, prefix.inner, shared, outer)
        after += [(batch,) for batch in self.pack(outer, shared, gaps=gaps)]
        return [(Batch([head], shape, shared, sharing=len(after)),), *after]

    def _share_once(
        self, rows: Sequence[Row], prefixes: Sequence[Prefix], above: SharedPrefix | None, alone: list[Row]
    ) -> list[Group]:
        """Pairs of a prefix and what continues it: contexts of equal length together, so nothing is padded between."""
        base = above.length if above else 0
        groups: list[Group] = []
        chosen: list[Prefix] = []
        for prefix in sorted(prefixes, key=lambda p: (-p.length, -max(len(rows[i].tokens) for i in p.rows))):
            more = _pair_shapes(rows, [*chosen, prefix], base)
            if chosen and (prefix.length != chosen[0].length or not self._is_small(*more)):
                groups.append(self._pair(rows, chosen, above))
                chosen, more = [], _pair_shapes(rows, [prefix], base)
            if chosen or self.has_room(*more):
                chosen.append(prefix)
            else:
                alone += [rows[i] for i in prefix.rows]
        return [*groups, self._pair(rows, chosen, above)] if chosen else groups

    def _pair(self, rows: Sequence[Row], prefixes: Sequence[Prefix], above: SharedPrefix | None) -> Group:
        base, length = above.length if above else 0, prefixes[0].length
        mine, theirs = _pair_shapes(rows, prefixes, base)
        cache = prefix_cache(self._layers, above.cache if above else None, base, keep=True)
        drop_after(cache, 1)
        shared_rows = [Row(rows[p.rows[0]].tokens[:length]) for p in prefixes]
        sharing = [rows[i] for p in prefixes for i in p.rows]
        places = tuple(at for at, p in enumerate(prefixes) for _ in p.rows)
        return Batch(shared_rows, mine, SharedPrefix(cache, base), sharing=1), Batch(
            sharing, theirs, SharedPrefix(cache, length, places)
        )

    def _is_small(self, *shapes: Shape) -> bool:
        small = all(s.rows * s.tokens <= MICRO_BATCH_TOKENS and s.scored <= MOST_SCORED for s in shapes)
        return small and self.has_room(*shapes)


def _outside(rows: Sequence[Row], prefixes: Sequence[Prefix]) -> list[Row]:
    shared = {i for prefix in prefixes for i in prefix.rows}
    return [row for i, row in enumerate(rows) if i not in shared]


def _pair_shapes(rows: Sequence[Row], prefixes: Sequence[Prefix], base: int) -> tuple[Shape, Shape]:
    """Of contexts of one length, and of the rows that share them."""
    length = prefixes[0].length
    sharing = [rows[i] for p in prefixes for i in p.rows]
    longest = max(len(row.tokens) for row in sharing) - length
    scored = sum(len(row.positions) for row in sharing)
    mine = Shape(len(prefixes), length - base, past=base, scored=1, cached=True, transient=True)
    return mine, Shape(len(sharing), longest, past=length, scored=scored)
