"""Which stored tensors each expert of a layer is made of: tensors of its own, or its part of one for all."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from outsize.models.dtypes import dtype_bytes
from outsize.models.spec import StoredTensor


def expert_slice(tensor: StoredTensor, index: int) -> StoredTensor:
    """What a stored tensor [experts, ...] has for one expert, as a tensor of its own."""
    shape = tensor.shape[1:]
    nbytes = prod(shape) * dtype_bytes(tensor.dtype)
    name = f"{tensor.name}[{index}]"
    return StoredTensor(name, tensor.dtype, shape, tensor.file, tensor.offset + index * nbytes, nbytes)


def expert_tensors(tensors: Sequence[StoredTensor], experts: int) -> list[tuple[StoredTensor, ...]]:
    """The stored tensors of each of so many experts, from all of them: expert after expert, or [experts, ...] each."""
    if all(len(tensor.shape) > 2 and tensor.shape[0] == experts for tensor in tensors):
        return [tuple(expert_slice(tensor, index) for tensor in tensors) for index in range(experts)]
    each = len(tensors) // experts
    return [tuple(tensors[index * each : (index + 1) * each]) for index in range(experts)]
