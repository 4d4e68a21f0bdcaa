"""The sum of a buffer's words: what it takes to read memory, and next to nothing else."""

from __future__ import annotations

import torch

from outsize.kernels.cpu.library import kernels


def total(buffer: torch.Tensor) -> int:
    """The sum of the 64-bit words of ``buffer`` (contiguous, on the CPU, of whole words) modulo 2**64, by all threads.

    Memory is read as the kernels read weights, from several places by turns: that is a third faster than torch's sum,
    which does it where there are no kernels.
    """
    words = buffer.view(-1).view(torch.int64)
    build = kernels()
    if build is None:
        return int(words.sum()) % (1 << 64)
    found: int = build.read(torch.get_num_threads(), words.data_ptr(), words.numel())
    return found
