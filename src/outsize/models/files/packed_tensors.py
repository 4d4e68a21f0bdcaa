"""The stored tensors that are one packed weight together: values, scales, zero points.

What ``quantization_config`` says is checked against what is stored.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outsize.errors import DamagedModel
from outsize.models.expert_slices import expert_slice
from outsize.models.formats import MX_GROUP, MXFP4, WORD_BITS, Packing
from outsize.models.quantization import BITS, METHOD, Quantisation, unsupported
from outsize.models.spec import StoredTensor
from outsize.models.strided import elements

FLOATS = frozenset({"float16", "bfloat16", "float32"})
PARTS = ("", "_packed", "_scale", "_zero_point", "_shape")  # of names in a checkpoint, after the weight's own
MULTIPLIED_OUT = "bfloat16"  # what fp8 and mxfp4 weights stand for, unless the configuration says another type

ReadShape = Callable[[StoredTensor], tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """The stored tensors that are one weight together, under the name of the weight that they stand for.

    ``shape``: [out, in], or [experts, out, in]. ``packing``: where the tensors themselves say how they are packed; None
    where that depends on the module.
    """

    name: str
    shape: tuple[int, ...]
    values: StoredTensor
    scale: StoredTensor
    zero_point: StoredTensor | None = None
    packing: Packing | None = None

    @property
    def dtype(self) -> str:
        """The data type of the weight, once it is multiplied out: the scales', where it is theirs."""
        return self.scale.dtype if self.packing is None or self.packing.casts_scales else MULTIPLIED_OUT

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """What is read of it."""
        return tuple(t for t in (self.values, self.scale, self.zero_point) if t is not None)

    def fitted(self, packing: Packing) -> PackedTensor:
        """The tensors that this packing has a use for: a symmetric one has none for zero points, as the package has.

        Raises DamagedModel where one is missing, or has not the shape and data type that this packing gives it.
        """
        zero_point = self.zero_point if packing.zero_points else None
        if packing.zero_points and zero_point is None:
            raise DamagedModel(f"the checkpoint lacks {self.name}_zero_point")
        group = f"groups of {packing.group}" if packing.rows == 1 else f"blocks of {packing.rows} x {packing.group}"
        how = f"for {packing.bits} bits in {group}"
        _check(self.values, packing.values, packing.values_shape(self.shape), how)
        _check(self.scale, packing.scale, packing.scale_shape(self.shape), how)
        if zero_point is not None:
            _check(zero_point, packing.values, packing.zero_point_shape(self.shape), how)
        return replace(self, zero_point=zero_point)

    def expert(self, index: int) -> PackedTensor:
        """One matrix [out, in] of a weight [experts, out, in], where its bytes lie: slices of row-major tensors."""
        assert all(tensor.strides is None for tensor in self.tensors)
        values, scale = expert_slice(self.values, index), expert_slice(self.scale, index)
        return replace(self, name=f"{self.name}[{index}]", shape=self.shape[1:], values=values, scale=scale)


def merge(
    tensors: Sequence[StoredTensor], quantisation: Quantisation, read_shape: ReadShape
) -> tuple[StoredTensor | PackedTensor, ...]:
    """A checkpoint's tensors with those of every packed weight as one.

    ``read_shape`` gives the numbers in a stored ``weight_shape``, or None where its bytes cannot be read: then rows are
    taken to fill their words. Raises DamagedModel where a part of a weight is missing or does not fit the others, and
    UnsupportedModel for parts that outsize knows no use for.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    if quantisation.method != METHOD:
        found = _fp8(by_name, quantisation.block) if quantisation.method == "fp8" else _mxfp4(by_name)
        read = {tensor.name for packed in found.values() for tensor in packed.tensors}
        return (*(t for t in tensors if t.name not in read), *found.values())
    found = {}
    for tensor in tensors:
        if tensor.name.endswith(".weight_packed") or (tensor.name.endswith("_packed") and len(tensor.shape) == 3):
            packed = _from_words(tensor, by_name, quantisation, read_shape)
        elif tensor.name.endswith(".weight") and f"{tensor.name}_scale" in by_name:
            packed = _from_integers(tensor, by_name)
        elif tensor.name.endswith(".weight") and tensor.dtype == "int8":
            raise DamagedModel(f"the checkpoint lacks {tensor.name}_scale")
        else:
            continue
        if packed.name in found or (packed.values.name != packed.name and packed.name in by_name):
            raise DamagedModel(f"{packed.name} is stored both packed and as it is")
        found[packed.name] = packed
    taken = {f"{name}{part}" for name in found for part in PARTS}
    return (*(t for t in tensors if t.name not in taken), *found.values())


def shapes_in(folder: Path | None) -> ReadShape:
    """Reads the numbers of a ``weight_shape`` in a folder; without one they cannot be read."""
    mapped: dict[str, memoryview] = {}  # experts have tens of thousands of shapes

    def read(stored: StoredTensor) -> tuple[int, ...] | None:
        if folder is None:
            return None
        if stored.file not in mapped:
            with (folder / stored.file).open("rb") as file:
                mapped[stored.file] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        raw = mapped[stored.file][stored.offset : stored.offset + stored.nbytes]
        return struct.unpack("<2q", b"".join(elements(raw, stored)))

    return read


def _from_words(
    values: StoredTensor, by_name: Mapping[str, StoredTensor], quantisation: Quantisation, read_shape: ReadShape
) -> PackedTensor:
    name = values.name.removesuffix("_packed")
    scale, zero_point = _beside(name, by_name)
    stored = by_name.get(f"{name}_shape")
    if stored is None:
        raise DamagedModel(f"the checkpoint lacks {name}_shape")
    _check(stored, "int64", (2,))
    if len(values.shape) not in (2, 3):  # [experts, out, in] are those of a layer, in one tensor
        raise unsupported(f"{values.name} of {len(values.shape)} dimensions")
    *experts, rows, words = values.shape
    shape = read_shape(stored)
    if shape is None:
        scheme = quantisation.scheme_of(name.removesuffix(".weight"), ("Linear",))
        shape = (rows, words * WORD_BITS // (scheme.bits if scheme else min(BITS)))
    if shape[0] != rows or not 0 < shape[1] <= words * WORD_BITS // min(BITS):
        raise DamagedModel(f"{stored.name} does not fit {values.name}", need=f"({rows}, inputs)", have=str(shape))
    return PackedTensor(name, (*experts, *shape), values, scale, zero_point)


def _from_integers(values: StoredTensor, by_name: Mapping[str, StoredTensor]) -> PackedTensor:
    if values.dtype in FLOATS:
        raise unsupported(f"{values.name} stored as it was, beside its scales")
    if len(values.shape) != 2:
        raise unsupported(f"{values.name} of {len(values.shape)} dimensions")
    return PackedTensor(values.name, values.shape, values, *_beside(values.name, by_name))


def _fp8(by_name: Mapping[str, StoredTensor], block: tuple[int, int]) -> dict[str, PackedTensor]:
    """Weights of fp8 beside their scales: what has no scale is stored as it is, and that is never fp8."""
    found: dict[str, PackedTensor] = {}
    for name, tensor in by_name.items():
        if name.endswith("_scale_inv"):
            weight = by_name.get(name.removesuffix("_scale_inv"))
            if weight is None or not weight.dtype.startswith("float8"):
                have = "none" if weight is None else weight.dtype
                raise DamagedModel(f"{name} is stored without its weight", need="float8_e4m3fn", have=have)
        elif tensor.dtype.startswith("float8"):
            scale = by_name.get(f"{name}_scale_inv")
            if scale is None:
                raise DamagedModel(f"the checkpoint lacks {name}_scale_inv")
            if scale.dtype not in FLOATS:
                raise unsupported(f"scales of {scale.dtype}", "fp8")
            if tensor.dtype != "float8_e4m3fn" or len(tensor.shape) != 2:
                raise unsupported(f"{name} of {tensor.dtype} in {len(tensor.shape)} dimensions", "fp8")
            packing = Packing(8, block[1], words=False, scale=scale.dtype, kind="fp8", rows=block[0])
            found[name] = PackedTensor(name, tensor.shape, tensor, scale, packing=packing).fitted(packing)
    return found


def _mxfp4(by_name: Mapping[str, StoredTensor]) -> dict[str, PackedTensor]:
    """Blocks of sixteen bytes beside their exponents: [out, in], or the experts of a layer [experts, out, in]."""
    found: dict[str, PackedTensor] = {}
    for name, tensor in by_name.items():
        if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" not in by_name:
            raise DamagedModel(f"the checkpoint lacks {name.removesuffix('_scales')}_blocks")
        if not name.endswith("_blocks"):
            continue
        weight = name.removesuffix("_blocks")
        if f"{weight}_scales" not in by_name:
            raise DamagedModel(f"the checkpoint lacks {weight}_scales")
        if weight in by_name:
            raise DamagedModel(f"{weight} is stored both packed and as it is")
        if len(tensor.shape) not in (3, 4):
            raise unsupported(f"{name} of {len(tensor.shape)} dimensions", "mxfp4")
        shape = (*tensor.shape[:-2], tensor.shape[-2] * MX_GROUP)
        packed = PackedTensor(weight, shape, tensor, by_name[f"{weight}_scales"], packing=MXFP4)
        found[weight] = packed.fitted(MXFP4)
    return found


def _beside(name: str, by_name: Mapping[str, StoredTensor]) -> tuple[StoredTensor, StoredTensor | None]:
    """The scales, and the zero points where there are some, of the weight of that name."""
    for part in ("g_idx", "global_scale"):
        if f"{name}_{part}" in by_name:
            raise unsupported(f"{name}_{part}")
    if f"{name}_scale" not in by_name:
        raise DamagedModel(f"the checkpoint lacks {name}_scale")
    scale = by_name[f"{name}_scale"]
    if scale.dtype not in FLOATS:
        raise unsupported(f"scales of {scale.dtype}")
    return scale, by_name.get(f"{name}_zero_point")


def _check(tensor: StoredTensor, dtype: str, shape: tuple[int, ...], how: str = "") -> None:
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise DamagedModel(
            f"{tensor.name} is not as it must be {how}".rstrip(),
            need=f"{dtype} {shape}",
            have=f"{tensor.dtype} {tensor.shape}",
        )
