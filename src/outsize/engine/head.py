"""The head's input, laid out so that torch does not copy the head to multiply with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

HALF = (torch.bfloat16, torch.float16)


def lay_out_rows(_: nn.Module, args: Any) -> Any:
    """A forward pre-hook for a head: hidden states [batch, tokens, hidden] in one piece, if they are a slice.

    ``generate`` slices the last token's out of the prompt's. torch 2.13 then takes a batched matmul instead of a plain
    one, and that, in 16 bits on the CPU, copies the whole weight once per sequence: gigabytes, and twenty times slower.
    The bits are the same, but for float16 with several sequences, where the last one may differ.
    """
    hidden = args[0] if args else None
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.dtype not in HALF:
        return None
    if hidden.device.type != "cpu" or hidden.stride(0) == hidden.stride(1) * hidden.shape[1]:
        return None
    return (hidden.clone(memory_format=torch.contiguous_format), *args[1:])
