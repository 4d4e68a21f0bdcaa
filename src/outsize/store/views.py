"""Stored tensors as torch's, where their bytes lie in a buffer."""

from __future__ import annotations

import torch

from outsize.models.spec import StoredTensor


def tensor_at(view: memoryview, position: int, stored: StoredTensor) -> torch.Tensor:
    """A view of a stored tensor's bytes in a buffer, with its shape, strides and data type. No copy."""
    dtype: torch.dtype = getattr(torch, stored.dtype)
    count = stored.nbytes // dtype.itemsize
    if count == 0:
        return torch.empty(stored.shape, dtype=dtype)
    flat = torch.frombuffer(view, dtype=dtype, count=count, offset=position)
    return flat.view(stored.shape) if stored.strides is None else flat.as_strided(stored.shape, stored.strides)
