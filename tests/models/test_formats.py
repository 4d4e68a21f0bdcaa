"""What packed weights weigh, by hand."""

from __future__ import annotations

import pytest

from outsize.models.formats import MXFP4, Packing, packing_for

SHAPE = (6, 130)  # 130 integers: 17 words of 4 bits, 33 of 8; five groups of 32


def test_words_and_scales() -> None:
    four = Packing(4, 32, words=True, scale="bfloat16")
    assert four.format == "int4"
    assert (four.values_shape(SHAPE), four.scale_shape(SHAPE)) == ((6, 17), (6, 5))
    assert four.nbytes(SHAPE) == 6 * 17 * 4 + 6 * 5 * 2
    assert four.nbytes(SHAPE, "float32") == 6 * 17 * 4 + 6 * 5 * 4
    assert four.file_bytes == 16
    assert Packing(8, 130, words=True, scale="float32").nbytes(SHAPE) == 6 * 33 * 4 + 6 * 4


def test_zero_points_of_words_are_packed_along_the_rows() -> None:
    packing = Packing(4, 32, words=True, scale="float16", zero_points=True)
    assert packing.zero_point_shape(SHAPE) == (1, 5)
    assert packing.nbytes(SHAPE) == 6 * 17 * 4 + 6 * 5 * 2 + 5 * 4
    assert packing.zero_point_shape((9, 130)) == (2, 5)


def test_an_integer_to_a_byte() -> None:
    packing = Packing(8, 130, words=False, scale="float16", zero_points=True)
    assert packing.nbytes(SHAPE) == 6 * 130 + 6 * 2 + 6
    assert packing.zero_point_shape(SHAPE) == (6, 1)
    assert packing.file_bytes == 0


def test_fp8_has_a_scale_for_each_block() -> None:
    packing = Packing(8, 128, words=False, scale="float32", kind="fp8", rows=128)
    assert (packing.format, packing.values, packing.file_bytes) == ("fp8", "float8_e4m3fn", 0)
    assert (packing.values_shape((576, 7168)), packing.scale_shape((576, 7168))) == ((576, 7168), (5, 56))
    assert packing.nbytes((576, 7168)) == 576 * 7168 + 5 * 56 * 4
    assert packing.nbytes((576, 7168), "bfloat16") == packing.nbytes((576, 7168))  # its scales stay as they are
    assert packing.scale_shape((3, 576, 7168)) == (3, 5, 56)


def test_mxfp4_has_an_exponent_for_32_inputs() -> None:
    assert (MXFP4.format, MXFP4.values, MXFP4.file_bytes) == ("mxfp4", "uint8", 0)
    assert MXFP4.values_shape((32, 5760, 2880)) == (32, 5760, 90, 16)
    assert MXFP4.scale_shape((32, 5760, 2880)) == (32, 5760, 90)
    assert MXFP4.nbytes((5760, 2880), "float32") == 5760 * 2880 // 2 + 5760 * 90


@pytest.mark.parametrize(("inputs", "group"), [(4096, 128), (4544, 64), (160, 32), (130, None), (48, None)])
def test_the_largest_group_that_divides_a_row(inputs: int, group: int | None) -> None:
    packing = packing_for(4, inputs, "bfloat16")
    assert (packing.group if packing else None) == group
    assert packing is None or (packing.words and not packing.zero_points and packing.scale == "bfloat16")
