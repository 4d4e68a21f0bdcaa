from __future__ import annotations

import pytest

from outsize.evals.fewshot.interval import accuracy, wilson


# R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(right: int, rows: int, low: float, high: float) -> None:
    assert wilson(right / rows, rows) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - right / rows, rows) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_it_lies_between_0_and_1_and_holds_the_share() -> None:
    for rows in (1, 7, 1000):
        for right in range(rows + 1):
            low, high = wilson(right / rows, rows)
            assert 0 <= low <= right / rows <= high <= 1


def test_several_draws_are_no_further_rows() -> None:
    found = accuracy((0.5, 0.7), 40)
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == wilson(found.mean, 40)
    assert found.draws == (0.5, 0.7)
