"""What sequences share: beginnings that are worth computing once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

# Tokens that computing a prefix apart must save: a pass of its own costs a block's small operations once more.
LEAST_SAVED = 32
DEEPEST = 200  # of beginnings within beginnings that are looked at


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first ``length`` tokens of all of ``rows``; ``inner``: longer beginnings that some of them share."""

    length: int
    rows: tuple[int, ...]
    inner: tuple[Prefix, ...] = ()

    @property
    def outer_rows(self) -> tuple[int, ...]:
        """The rows that share none of the longer ones."""
        taken = {row for prefix in self.inner for row in prefix.rows}
        return tuple(row for row in self.rows if row not in taken)


def find_prefixes(sequences: Sequence[tuple[int, ...]], most: Sequence[int], levels: int) -> tuple[Prefix, ...]:
    """The beginnings that save most tokens, at most ``levels`` of them within each other.

    ``most[i]``: tokens of sequence i that may be shared. Sharing ``length`` tokens between n sequences saves
    ``(n - 1) * length`` of them, less what an outer prefix saves already.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    common = [min(common_tokens(sequences[a], sequences[b]), most[a], most[b]) for a, b in pairwise(order)]

    @cache
    def best(begin: int, end: int, base: int, levels: int, depth: int) -> tuple[int, tuple[Prefix, ...]]:
        """Tokens saved in order[begin:end], which share ``base`` tokens already, and by which prefixes."""
        if end - begin < 2 or not levels or depth > DEEPEST:
            return 0, ()
        length = min(common[begin : end - 1])
        cuts = [begin, *(i + 1 for i in range(begin, end - 1) if common[i] == length), end]
        spans = list(pairwise(cuts))
        without = [best(b, e, base, levels, depth + 1) for b, e in spans]
        saved, found = sum(s for s, _ in without), tuple(p for _, several in without for p in several)
        own = (end - begin - 1) * (length - base) - LEAST_SAVED
        if own < 0:
            return saved, found
        within = [best(b, e, length, levels - 1, depth + 1) for b, e in spans]
        taken = own + sum(s for s, _ in within)
        if taken < saved:
            return saved, found
        rows = tuple(order[begin:end])
        return taken, (Prefix(length, rows, tuple(p for _, several in within for p in several)),)

    return best(0, len(order), 0, levels, 0)[1]


def common_tokens(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Tokens that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
