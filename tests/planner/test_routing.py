from __future__ import annotations

import pytest

from outsize.planner.routing import hit_rate, touched, touched_measured

ZIPF = [1.0 / rank for rank in range(1, 129)]


def test_what_tokens_touch() -> None:
    assert touched(256, 8, 0) == 0.0
    assert touched(256, 8, 1) == pytest.approx(8 / 256)
    assert touched(8, 2, 2) == pytest.approx(1 - 0.75**2)
    assert touched(256, 8, 150) > 0.99
    assert touched(4, 4, 1) == 1.0


def test_what_tokens_touch_by_what_was_used_before() -> None:
    assert touched_measured([5] * 128, 8, 20) == pytest.approx(touched(128, 8, 20))
    assert touched_measured([0] * 128, 8, 20) == pytest.approx(touched(128, 8, 20))  # nothing was measured
    assert touched_measured(ZIPF, 8, 20) < touched(128, 8, 20)
    assert touched_measured([1, 1, 0, 0], 2, 100) == 0.5


def test_uniform_routing_hits_what_is_cached() -> None:
    assert [hit_rate(None, 8, share) for share in (-0.1, 0.0, 0.3, 1.0, 1.5)] == [0.0, 0.0, 0.3, 1.0, 1.0]
    for share in (0.02, 0.3, 0.9):
        assert hit_rate([7] * 128, 8, share) == pytest.approx(share, abs=1e-5)
        assert hit_rate([7] * 1280, 80, share) == pytest.approx(share, abs=1e-5)  # ten layers in a row


def test_skewed_routing_hits_more_than_is_cached() -> None:
    rates = [hit_rate(ZIPF, 8, share) for share in (0.05, 0.1, 0.25, 0.5, 0.75, 0.99)]
    assert rates == sorted(rates)
    assert 0.4 < rates[2] < 0.7
    assert rates[-1] > 0.99
    assert hit_rate([3 * count for count in ZIPF], 8, 0.25) == pytest.approx(rates[2])  # only shares count


def test_a_cache_that_holds_all_that_is_ever_used_hits_always() -> None:
    assert hit_rate([4, 4, 0, 0], 1, 0.5) == pytest.approx(1.0)
    assert hit_rate([4, 4, 0, 0], 1, 0.75) == pytest.approx(1.0)
    assert hit_rate([100, 1, 1, 1], 2, 0.5) > 0.5  # one that every token uses, whatever its count says
