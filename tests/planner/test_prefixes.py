from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from outsize.planner import prefixes
from outsize.planner.prefixes import DEEPEST, LEAST_SAVED, Prefix, find_prefixes

Tokens = tuple[int, ...]


def test_what_many_begin_with_and_what_some_of_them_do() -> None:
    examples, context = tuple(range(100, 150)), tuple(range(200, 240))
    rows = [(*examples, i) for i in range(10)]
    rows += [(*examples, *context, i) for i in range(3)]
    rows += [(1, 2, 3)]
    (found,) = find_prefixes(rows, [len(row) - 1 for row in rows], levels=2)
    assert found.length == 50
    assert sorted(found.rows) == list(range(13))
    (inner,) = found.inner
    assert (inner.length, sorted(inner.rows), inner.inner) == (90, [10, 11, 12], ())
    assert sorted(found.outer_rows) == list(range(10))


def test_one_level_takes_what_saves_most() -> None:
    examples, context = tuple(range(100, 150)), tuple(range(200, 290))
    rows = [(*examples, i) for i in range(2)] + [(*examples, *context, i) for i in range(3)]
    most = [len(row) - 1 for row in rows]
    assert [p.length for p in find_prefixes(rows, most, levels=1)] == [140]
    rows += [(*examples, i, i) for i in range(20)]
    assert [p.length for p in find_prefixes(rows, [len(row) - 1 for row in rows], levels=1)] == [50]


def test_only_what_may_be_shared_and_is_worth_it() -> None:
    rows = [tuple(range(40))] * 3
    assert find_prefixes(rows, [0, 0, 0], levels=2) == ()
    assert find_prefixes(rows, [LEAST_SAVED // 2] * 3, levels=2) == (Prefix(LEAST_SAVED // 2, (0, 1, 2)),)
    assert find_prefixes(rows, [LEAST_SAVED // 2 - 1] * 3, levels=2) == ()
    assert find_prefixes([], [], levels=2) == ()
    assert find_prefixes([(1, 2)], [1], levels=2) == ()


def test_beginnings_within_beginnings_have_an_end() -> None:
    rows = [tuple(range(n)) for n in range(1, 2 * DEEPEST)]
    found = find_prefixes(rows, [len(row) - 1 for row in rows], levels=1)
    assert all(len(rows[i]) > p.length for p in found for i in p.rows)


def within(found: Sequence[Prefix], depth: int = 1) -> Iterator[tuple[Prefix, int]]:
    """Every prefix, and how many it lies within, itself included."""
    for prefix in found:
        yield prefix, depth
        yield from within(prefix.inner, depth + 1)


def saved(chosen: Sequence[Tokens], sequences: Sequence[Tokens], levels: int) -> int:
    """Tokens that need not be computed where all of ``chosen`` are computed apart; -1 for too many in each other."""
    total = 0
    for prefix in chosen:
        outer = [other for other in chosen if other == prefix[: len(other)] and other != prefix]
        if len(outer) >= levels:
            return -1
        sharing = sum(len(s) > len(prefix) and s[: len(prefix)] == prefix for s in sequences)
        total += (sharing - 1) * (len(prefix) - max(map(len, outer), default=0)) - prefixes.LEAST_SAVED
    return total


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_no_other_prefixes_save_more(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST_SAVED", 2)
    rng = random.Random(levels)
    for _ in range(40):
        sequences = [tuple(rng.randrange(2) for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(2, 5))]
        found = find_prefixes(sequences, [len(s) - 1 for s in sequences], levels)
        chosen = []
        for prefix, _ in within(found):
            (shared,) = {sequences[i][: prefix.length] for i in prefix.rows}
            assert len(prefix.rows) == len(set(prefix.rows)) > 1
            assert all(len(sequences[i]) > prefix.length for i in prefix.rows)
            assert all(inner.length > prefix.length and set(inner.rows) < {*prefix.rows} for inner in prefix.inner)
            chosen.append(shared)
        every = {s[:n] for s in sequences for n in range(1, len(s))}
        shared = [p for p in every if sum(len(s) > len(p) and s[: len(p)] == p for s in sequences) > 1]
        subsets = itertools.product((False, True), repeat=len(shared))
        best = max(saved(list(itertools.compress(shared, some)), sequences, levels) for some in subsets)
        assert saved(chosen, sequences, levels) == best
