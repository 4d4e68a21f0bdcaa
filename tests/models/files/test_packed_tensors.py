"""Several stored tensors as one weight: all of them there, and fitting each other."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import pytest

from outsize.errors import DamagedModel, UnsupportedModel
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.packed_tensors import PackedTensor, merge, shapes_in
from outsize.models.formats import MXFP4, Packing
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


FP8 = Quantisation(method="fp8", block=(4, 32))
FP8_WEIGHT = ("fc.weight", "float8_e4m3fn", (10, 70))
FP8_SCALE = ("fc.weight_scale_inv", "float32", (3, 3))
MX = Quantisation(method="mxfp4")
MX_BLOCKS = ("experts.up_blocks", "uint8", (5, 8, 3, 16))
MX_SCALES = ("experts.up_scales", "uint8", (5, 8, 3))


def merged_as(
    quantisation: Quantisation, *parts: tuple[str, str, tuple[int, ...]]
) -> tuple[StoredTensor | PackedTensor, ...]:
    return merge([stored(*part) for part in parts], quantisation, lambda tensor: None)


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
        ([("fc.weight_packed", "int32", (2, 2, 10, 8)), SCALE, SHAPE], "of 4 dimensions"),
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


@pytest.mark.parametrize("scale", ["float32", "bfloat16"])
def test_fp8(scale: str) -> None:
    norm, packed = merged_as(FP8, FP8_WEIGHT, NORM, ("fc.weight_scale_inv", scale, (3, 3)))
    assert norm.name == "norm.weight"
    assert isinstance(packed, PackedTensor)
    assert (packed.name, packed.shape, packed.dtype) == ("fc.weight", (10, 70), "bfloat16")
    assert [tensor.name for tensor in packed.tensors] == ["fc.weight", "fc.weight_scale_inv"]
    assert packed.packing == Packing(8, 32, words=False, scale=scale, kind="fp8", rows=4)


def test_mxfp4_of_a_matrix() -> None:
    (packed,) = merged_as(MX, ("fc.weight_blocks", "uint8", (8, 3, 16)), ("fc.weight_scales", "uint8", (8, 3)))
    assert isinstance(packed, PackedTensor)
    assert (packed.name, packed.shape, packed.dtype, packed.packing) == ("fc.weight", (8, 96), "bfloat16", MXFP4)


def test_one_expert_of_many() -> None:
    blocks = StoredTensor("experts.up_blocks", "uint8", (5, 8, 3, 16), "f", 1000, 5 * 8 * 48)
    scales = StoredTensor("experts.up_scales", "uint8", (5, 8, 3), "f", 90, 5 * 8 * 3)
    (packed,) = merge([blocks, scales], MX, lambda tensor: None)
    assert isinstance(packed, PackedTensor)
    assert packed.shape == (5, 8, 96)
    one = packed.expert(3)
    assert (one.name, one.shape, one.packing) == ("experts.up[3]", (8, 96), MXFP4)
    assert one.values == StoredTensor("experts.up_blocks[3]", "uint8", (8, 3, 16), "f", 1000 + 3 * 8 * 48, 8 * 48)
    assert one.scale == StoredTensor("experts.up_scales[3]", "uint8", (8, 3), "f", 90 + 3 * 8 * 3, 8 * 3)
    assert one.fitted(MXFP4) == one


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([FP8_WEIGHT], "lacks fc.weight_scale_inv"),
        ([FP8_SCALE], "fc.weight_scale_inv is stored without its weight; need float8_e4m3fn, have none"),
        ([("fc.weight", "bfloat16", (10, 70)), FP8_SCALE], "need float8_e4m3fn, have bfloat16"),
        ([FP8_WEIGHT, ("fc.weight_scale_inv", "float32", (10, 3))], r"blocks of 4 x 32; need float32 \(3, 3\)"),
        ([FP8_WEIGHT, ("fc.weight_scale_inv", "float32", (3, 2))], r"have float32 \(3, 2\)"),
        ([FP8_WEIGHT, ("fc.weight_scale_inv", "float32", (3,))], "fc.weight_scale_inv is not as it must be"),
    ],
)
def test_damaged_fp8(parts: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises(DamagedModel, match=word):
        merged_as(FP8, *parts)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([("fc.weight", "float8_e5m2", (10, 70)), FP8_SCALE], "fc.weight of float8_e5m2"),
        ([("up", "float8_e4m3fn", (2, 10, 70)), ("up_scale_inv", "float32", (2, 3, 3))], "up of .* in 3 dimensions"),
        ([FP8_WEIGHT, ("fc.weight_scale_inv", "float8_e8m0fnu", (3, 3))], "scales of float8_e8m0fnu"),
        ([FP8_WEIGHT, ("fc.weight_scale_inv", "uint8", (3, 3))], "scales of uint8"),
    ],
)
def test_fp8_that_nobody_here_has_a_use_for(parts: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"of fp8 with {word}"):
        merged_as(FP8, *parts)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([MX_BLOCKS], "lacks experts.up_scales"),
        ([MX_SCALES], "lacks experts.up_blocks"),
        ([MX_BLOCKS, MX_SCALES, ("experts.up", "bfloat16", (5, 96, 8))], "experts.up is stored both packed and as it"),
        ([MX_BLOCKS, ("experts.up_scales", "uint8", (5, 8, 2))], r"experts.up_scales .* need uint8 \(5, 8, 3\)"),
        ([("experts.up_blocks", "uint8", (5, 8, 3, 8)), MX_SCALES], r"need uint8 \(5, 8, 3, 16\), have .* 8\)"),
        ([("experts.up_blocks", "int8", (5, 8, 3, 16)), MX_SCALES], "need uint8"),
        ([("experts.up_blocks", "uint8", (3, 16)), ("experts.up_scales", "uint8", (3,))], "of 2 dimensions"),
    ],
)
def test_damaged_mxfp4(parts: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises((DamagedModel, UnsupportedModel), match=word):
        merged_as(MX, *parts)
