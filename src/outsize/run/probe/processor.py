"""What the CPU does with torch: reading memory, matmuls of one row (decode) and of many (prefill)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch.nn import functional

from outsize.store.memory import Memory

WIDTH = 4096
SHAPES = ((WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))  # [out, in] of a block's matrices
PREFILL_ROWS = 512
PASSES = 5
STEP_SECONDS = 2.0  # for the passes of one figure
PATTERN = 1 << 20  # random elements, repeated: making half a gigabyte of them takes longer than measuring


def median_rate(work: float, run: Callable[[], object], seconds: float = STEP_SECONDS) -> float:
    """Work per second, the median of up to ``PASSES`` runs after one that warms up; slow machines get fewer."""
    begun = time.monotonic()
    run()
    rates: list[float] = []
    while len(rates) < PASSES:
        before = time.monotonic()
        if rates and before - begun > seconds:
            break
        run()
        rates.append(work / (time.monotonic() - before))
    return statistics.median(rates)


class Bench:
    """A buffer on huge pages, as the runtime's weights are, and how fast torch works on it with all its threads."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes - nbytes % (PATTERN * 4)
        self._bytes = torch.frombuffer(Memory(self.nbytes).view, dtype=torch.uint8)
        self._bytes.zero_()

    def memory_rate(self) -> float:
        """Bytes per second read from memory: the sum of the whole buffer as integers, which little else limits."""
        numbers = self._bytes.view(torch.int64)
        with torch.inference_mode():
            return median_rate(self.nbytes, numbers.sum)

    def decode_rate(self, dtype: str) -> float:
        """Bytes of weights per second through ``F.linear`` with one row, over as many matrices as the buffer holds."""
        weights = self._weights(getattr(torch, dtype))
        rows = {w.shape[1]: torch.rand(1, w.shape[1]).to(w.dtype) for w in weights}

        def one_pass() -> None:
            for weight in weights:
                functional.linear(rows[weight.shape[1]], weight)

        with torch.inference_mode():
            return median_rate(sum(w.nbytes for w in weights), one_pass)

    def flop_rate(self, dtype: str) -> float:
        """Floating-point operations per second of ``F.linear`` with 512 rows."""
        weight = self._weights(getattr(torch, dtype))[0]
        rows = torch.rand(PREFILL_ROWS, weight.shape[1]).to(weight.dtype)  # [rows, in]
        with torch.inference_mode():
            return median_rate(2.0 * PREFILL_ROWS * weight.numel(), lambda: functional.linear(rows, weight))

    def _weights(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Matrices of a block's shapes one after the other, with ordinary numbers: odd ones are slow to multiply."""
        numbers = self._bytes.view(dtype)
        numbers.view(-1, PATTERN).copy_(torch.randn(PATTERN).mul_(0.02))
        weights: list[torch.Tensor] = []
        start = 0
        for shape in cycle(SHAPES):
            count = shape[0] * shape[1]
            if start + count > numbers.numel():
                return weights or [numbers[: numbers.numel() // WIDTH * WIDTH].view(-1, WIDTH)]
            weights.append(numbers[start : start + count].view(shape))
            start += count
        raise AssertionError("the buffer ends")
