"""Lines through two measurements."""

import pytest

from outsize.probe.processor import line


def test_a_line_through_both() -> None:
    assert line(64, 512, 10 + 64 * 3, 10 + 512 * 3) == pytest.approx((10, 3))


def test_noise_makes_no_rate_negative() -> None:
    at_none, for_each = line(64, 512, 100, 90)  # many rows were faster than few
    assert at_none > 0
    assert for_each > 0
    at_none, for_each = line(64, 512, 1, 512)  # steeper than through nothing
    assert at_none > 0
