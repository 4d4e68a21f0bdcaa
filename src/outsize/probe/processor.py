"""What the CPU does with weights as the runtime holds them: matmuls of one row (decode) and of many (prefill).

Plain weights and packed ones go the way that they go in a model: to the compiled kernels where there are some.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch.nn import functional

from outsize.kernels.bf12 import Bf12Weight, encode
from outsize.kernels.cpu.library import kernels
from outsize.kernels.memory_rate import total
from outsize.kernels.weights import NativeWeight, PackedWeight
from outsize.models.formats import GROUPS, Packing
from outsize.store.buffer import Memory

WIDTH = 4096
SHAPES = ((WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))  # [out, in] of a block's matrices
PREFILL_ROWS = 512
PASSES = 5
STEP_SECONDS = 2.0  # for the passes of one figure
PACKED = {name: Packing(bits, GROUPS[0], words=True, scale="bfloat16") for name, bits in (("int8", 8), ("int4", 4))}
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
    """A buffer on huge pages, as the runtime's weights are, and how fast they are multiplied with all threads."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes - nbytes % (PATTERN * 4)
        self._bytes = torch.frombuffer(Memory(self.nbytes).view, dtype=torch.uint8)
        self._bytes.zero_()

    @property
    def keys(self) -> tuple[str, ...]:
        """What weights may be in here: 12 bits need the compiled kernels."""
        return ("float32", "bfloat16", "float16", "int8", "int4", *(("bf12",) if kernels() is not None else ()))

    def memory_rate(self) -> float:
        """Bytes per second read from memory: the sum of the whole buffer as integers, which little else limits."""
        with torch.inference_mode():
            return median_rate(self.nbytes, lambda: total(self._bytes))

    def decode_rate(self, key: str) -> float:
        """Bytes of weights per second through ``F.linear`` with one row, over as many matrices as the buffer holds.

        ``key``: a data type, int8, int4 or bf12, of which the 12-bit form's bytes count.
        """
        weights = self._weights(key)
        rows = {w.shape[1]: torch.rand(1, w.shape[1]).to(w.dtype) for w in weights}

        def one_pass() -> None:
            for weight in weights:
                functional.linear(rows[weight.shape[1]], weight)

        with torch.inference_mode():
            return median_rate(sum(_nbytes(w) for w in weights), one_pass)

    def flop_rate(self, key: str) -> float:
        """Floating-point operations per second of ``F.linear`` with 512 rows, over matrices of all shapes in turn.

        One matrix alone would lie in a cache: a block's never do.
        """
        weights = self._weights(key)[: len(SHAPES)]
        rows = {w.shape[1]: torch.rand(PREFILL_ROWS, w.shape[1]).to(w.dtype) for w in weights}  # [rows, in]

        def one_pass() -> None:
            for weight in weights:
                functional.linear(rows[weight.shape[1]], weight)

        with torch.inference_mode():
            return median_rate(sum(2.0 * PREFILL_ROWS * w.numel() for w in weights), one_pass)

    def _weights(self, key: str) -> list[torch.Tensor]:
        """Matrices of a block's shapes one after the other, with ordinary numbers: odd ones are slow to multiply.

        In plain torch packed weights are unpacked for every use; one of them is enough, and slow enough.
        """
        packing = PACKED.get(key)
        if key == "bf12":
            made = [encode(weight) for weight in self._matrices(torch.bfloat16, SHAPES)[: len(SHAPES)]]
            return [weight for weight in made if weight is not None]
        if packing is None:
            plain = self._matrices(getattr(torch, key), SHAPES)
            return plain if kernels() is None else [weight.as_subclass(NativeWeight) for weight in plain]
        words = self._matrices(torch.int32, [packing.values_shape(shape) for shape in SHAPES])
        return [_packed(values, packing) for values in (words[:1] if kernels() is None else words)]

    def _matrices(self, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        numbers = self._bytes.view(dtype)
        random = (
            torch.randn(PATTERN).mul_(0.02)
            if dtype.is_floating_point
            else torch.randint(-(1 << 31), 1 << 31, (PATTERN,))
        )
        numbers.view(-1, PATTERN).copy_(random)
        matrices: list[torch.Tensor] = []
        start = 0
        for shape in cycle(shapes):
            count = shape[0] * shape[1]
            if start + count > numbers.numel():
                width = shapes[0][1]
                return matrices or [numbers[: numbers.numel() // width * width].view(-1, width)]
            matrices.append(numbers[start : start + count].view(shape))
            start += count
        raise AssertionError("the buffer ends")


def _packed(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """A weight of these words: its scales are all the same, and lie beside the buffer."""
    shape = (values.shape[0], values.shape[1] * 32 // packing.bits)
    return PackedWeight(
        values, torch.full(packing.scale_shape(shape), 0.01, dtype=torch.bfloat16), None, packing, shape
    )


def _nbytes(weight: torch.Tensor) -> int:
    if isinstance(weight, Bf12Weight):
        return weight.stored.nbytes
    return weight.packing.nbytes(tuple(weight.shape)) if isinstance(weight, PackedWeight) else weight.nbytes
