"""How a quantised weight is stored: the layout of compressed-tensors, and what it weighs.

A weight [out, in] becomes integers, and a scale for every group of inputs of every row. ``pack-quantized`` packs the
integers into int32 words along the inputs: element i of a row lies in word ``i // (32 / bits)``, from bit
``i % (32 / bits) * bits`` upwards, as ``value + 2 ** (bits - 1)``. ``int-quantized`` stores them as int8. A zero point,
where there is one, is an integer per scale; packed ones are packed along the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from outsize.models.dtypes import dtype_bytes

WORD_BITS = 32
WORD_BYTES = 4
SHAPE_BYTES = 16  # `weight_shape`: two int64 beside every packed weight, on disk only
# Inputs per scale of what outsize quantises: the largest of these that divides a row. compressed-tensors multiplies no
# weight whose last group is cut short, so a weight that none divides stays as it is.
GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Packing:
    """How the integers, scales and zero points of a weight [out, in] are stored.

    ``group``: inputs that share a scale; all of them for one scale per row. ``words``: pack-quantized, else one int8
    for each integer.
    """

    bits: int  # 4 or 8
    group: int
    words: bool
    scale: str  # data type in the checkpoint, by torch's name
    zero_points: bool = False

    @property
    def format(self) -> str:
        """What planning calls it: "int8" or "int4"."""
        return f"int{self.bits}"

    @property
    def file_bytes(self) -> int:
        """Bytes beside the weight in its file that nobody reads again: its shape, where it is packed into words."""
        return SHAPE_BYTES if self.words else 0

    def groups(self, inputs: int) -> int:
        """Scales of one row: ``ceil(in / group)``."""
        return -(-inputs // self.group)

    def values_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the stored integers: [out, ceil(in * bits / 32)] words, or [out, in] bytes."""
        return (*shape[:-1], words_for(shape[-1], self.bits) if self.words else shape[-1])

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales: [out, groups]."""
        return (*shape[:-1], self.groups(shape[-1]))

    def zero_point_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the zero points: [ceil(out * bits / 32), groups] words, or [out, groups] bytes."""
        *outer, rows, inputs = shape
        return (*outer, words_for(rows, self.bits) if self.words else rows, self.groups(inputs))

    def nbytes(self, shape: tuple[int, ...], scale: str = "") -> int:
        """Bytes of a weight of this shape [out, in]: integers + scales + zero points.

        ``scale``: the scales' data type in memory, where that is not the checkpoint's.
        """
        width = WORD_BYTES if self.words else 1
        integers = prod(self.values_shape(shape)) * width
        zero_points = prod(self.zero_point_shape(shape)) * width if self.zero_points else 0
        return integers + self.scale_bytes(shape, scale) + zero_points

    def scale_bytes(self, shape: tuple[int, ...], scale: str = "") -> int:
        """Bytes of the scales alone."""
        return prod(self.scale_shape(shape)) * dtype_bytes(scale or self.scale)


def words_for(count: int, bits: int) -> int:
    """int32 words that hold ``count`` integers: ``ceil(count * bits / 32)``."""
    return -(-count * bits // WORD_BITS)


def packing_for(bits: int, inputs: int, stored: str) -> Packing | None:
    """How outsize quantises a weight with that many inputs, stored as ``stored``; None: it stays as it is.

    Words, symmetric, one scale in the stored type per group of 128 inputs; smaller groups where 128 divides no row.
    """
    group = next((size for size in GROUPS if inputs % size == 0), None)
    return None if group is None else Packing(bits, group, words=True, scale=stored)
