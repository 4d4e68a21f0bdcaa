from __future__ import annotations

import random

from outsize.planning.prefixes import DEEPEST, LEAST_SAVED, Prefix, find_prefixes


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


def test_shared_tokens_are_equal_tokens() -> None:
    rng = random.Random(3)
    rows = [tuple(rng.randrange(2) for _ in range(rng.randrange(5, 60))) for _ in range(200)]
    rows = [(*(5,) * rng.choice((0, 20, 30)), *row) for row in rows]
    for prefix in find_prefixes(rows, [len(row) - 1 for row in rows], levels=2):
        assert len({rows[i][: prefix.length] for i in prefix.rows}) == 1
        for inner in prefix.inner:
            assert inner.length > prefix.length
            assert set(inner.rows) < set(prefix.rows)
            assert len({rows[i][: inner.length] for i in inner.rows}) == 1
