"""What a converted checkpoint will hold, to the byte, before anything is read: which tensors, in which shards, where.

Pure arithmetic over the headers of the source. The same source and format give the same recipe, and so the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from outsize.errors import UnsupportedModel
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.safetensors import TORCH_NAMES
from outsize.models.formats import Packing, packing_for
from outsize.models.spec import ModelSpec, ModuleSpec, StoredTensor, TensorSpec

LIMIT = 4 << 30  # bytes of tensors in a shard
LEAST = 1 << 30  # ... from which one ends where a source file does, which can be dropped then
ALIGNMENT = 64  # of the start of the data, and of every tensor whose size allows it
BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
FLOATS = ("bfloat16", "float16", "float32")  # what quantise takes
HEADER_NAMES = {torch: header for header, torch in TORCH_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the source, and what becomes of it: itself, or words, scales and a shape if it has a ``packing``.

    ``module`` is the Linear module whose weight it is, where it is quantised.
    """

    source: StoredTensor
    packing: Packing | None = None
    module: str = ""

    @property
    def outputs(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, data type and shape of each tensor that is written."""
        name, shape = self.source.name, self.source.shape
        if self.packing is None:
            return ((name, self.source.dtype, shape),)
        return (
            (f"{name}_packed", "int32", self.packing.values_shape(shape)),
            (f"{name}_scale", self.packing.scale, self.packing.scale_shape(shape)),
            (f"{name}_shape", "int64", (2,)),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return sum(prod(shape) * dtype_bytes(dtype) for _, dtype, shape in self.outputs)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its first bytes, and where each tensor goes, from the start of the file."""

    name: str
    steps: tuple[Step, ...]
    header: bytes
    placed: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.placed)

    @property
    def sources(self) -> tuple[str, ...]:
        """The source files that its tensors come from, in order."""
        return tuple(dict.fromkeys(step.source.file for step in self.steps))


@dataclass(frozen=True, slots=True)
class Recipe:
    """All shards, in the order in which they are written."""

    weights: str
    shards: tuple[Shard, ...]

    @property
    def digest(self) -> str:
        """Tells this recipe from any other: a checksum of all names, headers and places in the source."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(shard.name.encode() + b"\0" + shard.header)
            for step in shard.steps:
                source = step.source
                digest.update(f"{source.name}\0{source.file}\0{source.nbytes}{source.strides or ''}\n".encode())
        return digest.hexdigest()

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return sum(step.source.nbytes for shard in self.shards for step in shard.steps)

    @property
    def packings(self) -> dict[str, Packing]:
        """The packing of every Linear module that is quantised."""
        return {s.module: s.packing for shard in self.shards for s in shard.steps if s.packing is not None}

    @property
    def index(self) -> bytes | None:
        """The index file; none for a single shard."""
        if len(self.shards) == 1:
            return None
        placed = {tensor.name: shard.name for shard in self.shards for tensor in shard.placed}
        total = sum(tensor.nbytes for shard in self.shards for tensor in shard.placed)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        return (json.dumps(index, indent=2) + "\n").encode()


def make_recipe(tensors: Sequence[StoredTensor], spec: ModelSpec, weights: str) -> Recipe:
    """What becomes of a native checkpoint's tensors in int8 or int4.

    Tensors that the model ignores are left out. Source files are gone through one after the other, so that each is
    needed once; within one, tensors stand in the order of the forward pass, those of a block side by side.

    Raises UnsupportedModel where there is nothing to quantise, or where it is quantised already.
    """
    if spec.formats:
        have = " and ".join(sorted(spec.formats))
        raise UnsupportedModel(f"{spec.id} is quantised already", have=have, remedy="convert the native checkpoint")
    by_name = {tensor.name: tensor for tensor in tensors}
    steps: dict[str, Step] = {}
    for module in spec.modules:
        for tensor, name in _in_order(spec, module):
            step = Step(by_name[name], *_packing(spec, module, tensor, by_name[name], weights))
            steps[name] = steps.get(name, step)
    if not any(step.packing for step in steps.values()):
        raise UnsupportedModel(
            f"{spec.id} has no weights that {weights} could quantise: {spec.architecture} has no Linear layers of its "
            "own in its blocks",
            remedy="--weights native",
        )
    order = {file: place for place, file in enumerate(sorted({tensor.file for tensor in tensors}))}
    groups = list(_grouped(sorted(steps.values(), key=lambda step: order[step.source.file])))
    count = len(groups)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    )
    return Recipe(weights, tuple(_shard(name, group) for name, group in zip(names, groups, strict=True)))


def _in_order(spec: ModelSpec, module: ModuleSpec) -> Iterator[tuple[TensorSpec, str]]:
    """The stored tensors of a module, each with what it is part of; all of an expert side by side, as they are read."""
    names = [spec.origins[tensor.name].names for tensor in module.tensors]
    each = [max(len(of_one) // max(module.experts, 1), 1) for of_one in names]
    for turn in range(max(module.experts, 1)):
        for tensor, of_one, count in zip(module.tensors, names, each, strict=True):
            some = of_one[turn * count : (turn + 1) * count] if module.experts else of_one
            yield from ((tensor, name) for name in some)


def _packing(
    spec: ModelSpec, module: ModuleSpec, tensor: TensorSpec, stored: StoredTensor, weights: str
) -> tuple[Packing | None, str]:
    """How a tensor is quantised, and the name of its module; None and "" where it stays as it is.

    Quantised are weights of Linear layers in blocks that are stored one to one, be it in another data type, and the
    matrices of routed experts, one by one or in one tensor [experts, out, in].
    """
    if module.experts:
        if not tensor.matmul or stored.dtype not in FLOATS:
            return None, ""
        packing = packing_for(BITS[weights], stored.shape[-1], stored.dtype)
        return (packing, stored.name.removesuffix(".weight")) if packing else (None, "")
    origin = spec.origins[tensor.name]
    cast = tensor.stored != tensor.runtime
    laid_out = stored.strides is not None  # a copy that is the tensor itself
    plain = len(origin.names) == 1 and (cast or laid_out or not origin.copies) and stored.shape == tensor.shape
    if not (module.role == "block" and tensor.matmul and plain and stored.dtype in FLOATS and len(stored.shape) == 2):
        return None, ""
    if not (stored.name.endswith(".weight") and tensor.name.endswith(".weight")):
        return None, ""
    packing = packing_for(BITS[weights], stored.shape[1], stored.dtype)
    return (packing, tensor.name.removesuffix(".weight")) if packing else (None, "")


def _grouped(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps of each shard: at most LIMIT bytes; from LEAST on, none begins another source file."""
    group: list[Step] = []
    size = 0
    for step in steps:
        begins = bool(group) and group[-1].source.file != step.source.file
        if group and (size + step.nbytes > LIMIT or (begins and size >= LEAST)):
            yield group
            group, size = [], 0
        group.append(step)
        size += step.nbytes
    yield group


def _shard(name: str, steps: Sequence[Step]) -> Shard:
    """Places tensors without holes (the format allows none), so that each begins at a multiple of its element's size.

    First those whose size is a multiple of 64, in the order of the steps; then the shapes, which nobody streams, and
    all others by falling element size.
    """
    tensors = [
        StoredTensor(part, dtype, shape, name, 0, prod(shape) * dtype_bytes(dtype))
        for step in steps
        for part, dtype, shape in step.outputs
    ]
    ordered = sorted(tensors, key=lambda t: -dtype_bytes(t.dtype) if t.nbytes % ALIGNMENT else -1000)
    place = 0
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    placed = []
    for tensor in ordered:
        offsets = [place, place + tensor.nbytes]
        entries[tensor.name] = {
            "dtype": HEADER_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        placed.append(replace(tensor, offset=place))
        place += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(name, tuple(steps), header, tuple(replace(t, offset=len(header) + t.offset) for t in placed))
