"""How a quantised weight is stored, and what it weighs: compressed-tensors, block-scaled fp8 and mxfp4.

Integers (compressed-tensors): a weight [out, in] becomes integers, and a scale for every group of inputs of every row.
``pack-quantized`` packs the integers into int32 words along the inputs: element i of a row lies in word
``i // (32 / bits)``, from bit ``i % (32 / bits) * bits`` upwards, as ``value + 2 ** (bits - 1)``. ``int-quantized``
stores them as int8. A zero point, where there is one, is an integer per scale; packed ones are packed along the rows.

fp8 (DeepSeek-V3, Qwen3): a byte e4m3 for each element, and a floating-point scale for each block of outputs and inputs.

mxfp4 (gpt-oss): four bits e2m1 for each element, two to a byte, the first in the low half, [out, in / 32, 16] bytes;
and for every 32 inputs of a row a byte s that stands for the scale ``2 ** (s - 127)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from outsize.models.dtypes import dtype_bytes

WORD_BITS = 32
SHAPE_BYTES = 16  # `weight_shape`: two int64 beside every packed weight, on disk only
# Inputs per scale of what outsize quantises: the largest of these that divides a row. compressed-tensors multiplies no
# weight whose last group is cut short, so a weight that none divides stays as it is.
GROUPS = (128, 64, 32)
MX_GROUP = 32  # inputs per scale in mxfp4: 16 bytes

Kind = Literal["int", "fp8", "mxfp4"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How the values, scales and zero points of a weight [out, in], or [experts, out, in], are stored.

    ``group``: inputs that share a scale; all of them for one scale per row. ``rows``: outputs that share it (fp8).
    ``words``: pack-quantized, else one int8 for each integer.
    """

    bits: int  # of a value: 4 or 8
    group: int
    words: bool
    scale: str  # data type in the checkpoint, by torch's name
    zero_points: bool = False
    kind: Kind = "int"
    rows: int = 1

    @property
    def format(self) -> str:
        """What planning calls it: "int8", "int4", "fp8" or "mxfp4"."""
        return f"int{self.bits}" if self.kind == "int" else self.kind

    @property
    def values(self) -> str:
        """Data type of the stored values, by torch's name."""
        if self.kind == "int":
            return "int32" if self.words else "int8"
        return "float8_e4m3fn" if self.kind == "fp8" else "uint8"

    @property
    def casts_scales(self) -> bool:
        """Whether the weight in another data type is one with scales of that type: else they stay as they are stored.

        compressed-tensors multiplies in the scales' own type. The others multiply in float32 and round once.
        """
        return self.kind == "int"

    @property
    def file_bytes(self) -> int:
        """Bytes beside the weight in its file that nobody reads again: its shape, where it is packed into words."""
        return SHAPE_BYTES if self.words else 0

    def groups(self, inputs: int) -> int:
        """Scales of one row: ``ceil(in / group)``."""
        return -(-inputs // self.group)

    def values_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the stored values: [out, ceil(in * bits / 32)] words, [out, in], or [out, in / 32, 16] of mxfp4."""
        *outer, inputs = shape
        if self.kind == "mxfp4":
            return (*outer, self.groups(inputs), MX_GROUP // 2)
        return (*outer, words_for(inputs, self.bits) if self.words else inputs)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales: [ceil(out / rows), groups]."""
        *outer, rows, inputs = shape
        return (*outer, -(-rows // self.rows), self.groups(inputs))

    def zero_point_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the zero points: [ceil(out * bits / 32), groups] words, or [out, groups] bytes."""
        *outer, rows, inputs = shape
        return (*outer, words_for(rows, self.bits) if self.words else rows, self.groups(inputs))

    def nbytes(self, shape: tuple[int, ...], scale: str = "") -> int:
        """Bytes of a weight of this shape [out, in]: values + scales + zero points.

        ``scale``: the weight's data type in memory, which is the scales' too where ``casts_scales``.
        """
        width = dtype_bytes(self.values)
        zero_points = prod(self.zero_point_shape(shape)) * width if self.zero_points else 0
        return prod(self.values_shape(shape)) * width + self.scale_bytes(shape, scale) + zero_points

    def scale_bytes(self, shape: tuple[int, ...], scale: str = "") -> int:
        """Bytes of the scales alone."""
        dtype = scale if scale and self.casts_scales else self.scale
        return prod(self.scale_shape(shape)) * dtype_bytes(dtype)


MXFP4 = Packing(4, MX_GROUP, words=False, scale="uint8", kind="mxfp4")


def words_for(count: int, bits: int) -> int:
    """int32 words that hold ``count`` integers: ``ceil(count * bits / 32)``."""
    return -(-count * bits // WORD_BITS)


def packing_for(bits: int, inputs: int, stored: str) -> Packing | None:
    """How outsize quantises a weight with that many inputs, stored as ``stored``; None: it stays as it is.

    Words, symmetric, one scale in the stored type per group of 128 inputs; smaller groups where 128 divides no row.
    """
    group = next((size for size in GROUPS if inputs % size == 0), None)
    return None if group is None else Packing(bits, group, words=True, scale=stored)
