"""Several stored tensors as one weight: all of them there, and fitting each other."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import pytest

from outsize.errors import DamagedModel, UnsupportedModel
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.packed_tensors import PackedTensor, merge, shapes_in
from outsize.models.quantization import Quantisation, Scheme
from outsize.models.spec import StoredTensor

FOUR = Scheme(4, 32, words=True, zero_points=False)
QUANTISATION = Quantisation({"Linear": FOUR}, ("lm_head",))
NORM = ("norm.weight", "bfloat16", (64,))
PACKED = ("fc.weight_packed", "int32", (10, 8))
SCALE = ("fc.weight_scale", "bfloat16", (10, 2))
SHAPE = ("fc.weight_shape", "int64", (2,))
ZERO = ("fc.weight_zero_point", "int32", (2, 2))
INTEGERS = ("fc.weight", "int8", (10, 64))


def stored(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, dtype, shape, "f", 0, prod(shape) * dtype_bytes(dtype))


def merged(
    *parts: tuple[str, str, tuple[int, ...]], shape: tuple[int, ...] | None = (10, 64)
) -> tuple[StoredTensor | PackedTensor, ...]:
    return merge([stored(*part) for part in parts], QUANTISATION, lambda tensor: shape)


def test_words() -> None:
    norm, packed = merged(NORM, PACKED, SCALE, SHAPE)
    assert norm.name == "norm.weight"
    assert isinstance(packed, PackedTensor)
    assert (packed.name, packed.shape, packed.dtype) == ("fc.weight", (10, 64), "bfloat16")
    assert [tensor.name for tensor in packed.tensors] == ["fc.weight_packed", "fc.weight_scale"]
    assert packed.fitted(FOUR.packing(64, "bfloat16")) == packed


def test_integers() -> None:
    (packed,) = merged(INTEGERS, SCALE, ("fc.weight_zero_point", "int8", (10, 2)))
    assert isinstance(packed, PackedTensor)
    packing = Scheme(8, 32, words=False, zero_points=True).packing(64, "bfloat16")
    assert len(packed.fitted(packing).tensors) == 3


def test_zero_points_of_a_symmetric_scheme_are_left_alone() -> None:
    (packed,) = merged(PACKED, SCALE, SHAPE, ZERO)
    assert isinstance(packed, PackedTensor)
    assert packed.zero_point is not None
    assert packed.fitted(FOUR.packing(64, "bfloat16")).zero_point is None
    with_them = Scheme(4, 32, words=True, zero_points=True).packing(64, "bfloat16")
    assert packed.fitted(with_them).zero_point is not None


def test_rows_fill_their_words_where_nobody_can_read_the_shape() -> None:
    (packed,) = merged(PACKED, SCALE, SHAPE, shape=None)
    assert packed.shape == (10, 64)
    (head,) = merged(
        ("lm_head.weight_packed", "int32", (10, 16)),
        ("lm_head.weight_scale", "bfloat16", (10, 2)),
        ("lm_head.weight_shape", "int64", (2,)),
        shape=None,
    )
    assert head.shape == (10, 128)  # the configuration does not say; whether that is right is seen later


def test_shapes_are_read_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" + struct.pack("<2q", 10, 61))
    tensor = StoredTensor("fc.weight_shape", "int64", (2,), "f", 3, 16)
    assert shapes_in(tmp_path)(tensor) == (10, 61)
    assert shapes_in(None)(tensor) is None


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([PACKED, SHAPE], "lacks fc.weight_scale"),
        ([INTEGERS], "lacks fc.weight_scale"),
        ([PACKED, SCALE], "lacks fc.weight_shape"),
        ([PACKED, SCALE, ("fc.weight_shape", "int64", (3,))], "fc.weight_shape is not"),
        ([PACKED, SCALE, SHAPE, ("fc.weight", "bfloat16", (10, 64))], "both packed and as it is|stored as it was"),
        ([("fc.weight_packed", "int32", (11, 8)), SCALE, SHAPE], "does not fit"),
    ],
)
def test_damaged(parts: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises((DamagedModel, UnsupportedModel), match=word):
        merged(*parts)


@pytest.mark.parametrize("inputs", [0, 65, 1 << 40])
def test_a_shape_that_does_not_fit_the_words(inputs: int) -> None:
    with pytest.raises(DamagedModel, match="_shape does not fit"):
        merged(PACKED, SCALE, SHAPE, shape=(10, inputs))


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([PACKED, SCALE, SHAPE, ("fc.weight_g_idx", "int32", (64,))], "g_idx"),
        ([PACKED, SCALE, SHAPE, ("fc.weight_global_scale", "float32", (1,))], "global_scale"),
        ([PACKED, ("fc.weight_scale", "float8_e4m3fn", (10, 2)), SHAPE], "scales of float8_e4m3fn"),
        ([("fc.weight", "bfloat16", (10, 64)), SCALE], "stored as it was"),
        ([("fc.weight_packed", "int32", (2, 10, 8)), SCALE, SHAPE], "of 3 dimensions"),
        ([("fc.weight", "int8", (2, 10, 64)), SCALE], "of 3 dimensions"),
    ],
)
def test_parts_that_nobody_here_has_a_use_for(parts: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises(UnsupportedModel, match=word):
        merged(*parts)


@pytest.mark.parametrize(
    ("part", "word"),
    [
        (("fc.weight_packed", "int32", (10, 9)), "fc.weight_packed"),
        (("fc.weight_packed", "int64", (10, 8)), "fc.weight_packed"),
        (("fc.weight_scale", "bfloat16", (10, 1)), "fc.weight_scale"),
        (("fc.weight_scale", "bfloat16", (10,)), "fc.weight_scale"),
        (("fc.weight_zero_point", "int32", (10, 2)), "fc.weight_zero_point"),
        (("fc.weight_zero_point", "int8", (2, 2)), "fc.weight_zero_point"),
        (("x", "int8", (1,)), "lacks fc.weight_zero_point"),
    ],
)
def test_what_has_not_the_shape_or_type_that_the_scheme_says(part: tuple[str, str, tuple[int, ...]], word: str) -> None:
    parts = {one[0]: one for one in (PACKED, SCALE, SHAPE, ZERO)} | {part[0]: part}
    if part[0] == "x":
        del parts["fc.weight_zero_point"]
    found = merged(*parts.values(), shape=(10, 64))
    (packed,) = [one for one in found if isinstance(one, PackedTensor)]
    with pytest.raises(DamagedModel, match=word):
        packed.fitted(Scheme(4, 32, words=True, zero_points=True).packing(64, "bfloat16"))
