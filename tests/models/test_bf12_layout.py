from __future__ import annotations

import pytest

from outsize.models.bf12_layout import bf12_bytes, bf12_parts, most_exceptions


def test_bytes_are_those_of_the_four_parts() -> None:
    assert bf12_parts(3, 300, 0.01) == (9 * 192, 64, 64, 64)
    assert bf12_bytes(3, 300, 0.01) == 9 * 192 + 3 * 64
    assert most_exceptions(3, 300, 0.01) == 9
    # 12 bits, a base per group, 4 bytes a row and room for exceptions
    assert bf12_bytes(4096, 16384) * 8 / (4096 * 16384) == pytest.approx(12.13, abs=0.01)


def test_an_exception_needs_its_column_in_16_bits() -> None:
    assert bf12_bytes(1, 65536) > 0
    with pytest.raises(ValueError, match="65537"):
        bf12_bytes(1, 65537)
