"""What the CPU does with weights as the runtime holds them: matmuls of one row (decode) and of many (prefill).

Plain weights and packed ones go the way that they go in a model: to the compiled kernels where there are some.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch.nn import functional

from outsize.kernels.bf12 import Bf12Weight, encode
from outsize.kernels.cpu.library import kernels
from outsize.kernels.memory_rate import total
from outsize.kernels.weights import NativeWeight, PackedWeight
from outsize.models.bf12_layout import LINE, bf12_bytes
from outsize.models.formats import GROUPS, Packing
from outsize.store.buffer import Memory, give_back_large_memory

WIDTH = 4096
SHAPES = ((WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH))  # [out, in] of a block's matrices
FEW_ROWS = 16  # that one reading of the weights serves
PREFILL_ROWS = (64, 1024)
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


def line(few: int, many: int, few_s: float, many_s: float) -> tuple[float, float]:
    """Seconds at no row and for each row, of a straight line through both; neither is less than a hundredth."""
    slope = max((many_s - few_s) / (many - few), many_s / many / 100)
    return max(few_s - few * slope, few_s / 100), slope


@dataclass(frozen=True, slots=True)
class MatmulRates:
    """Of one row: bytes of weights per second. Of others: operations per second, and elements laid out; see Device."""

    bytes_per_s: float
    few_rows_flops: float
    flops: float
    unpack_per_s: float


class Bench:
    """A buffer on huge pages, as the runtime's weights are, and how fast they are multiplied with all threads."""

    def __init__(self, nbytes: int) -> None:
        give_back_large_memory()  # as in a loaded model: what large matmuls lay out anew is new memory each time
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

    def matmul(self, key: str) -> MatmulRates:
        """The rates of ``F.linear`` over matrices of a block's shapes; ``key``: a data type, int8, int4 or bf12."""
        weights = self._weights(key)
        some = weights[: len(SHAPES)]  # for many rows: one matrix alone would lie in a cache
        elements, nbytes = sum(w.numel() for w in weights), sum(_nbytes(w) for w in weights)
        with torch.inference_mode():
            one, few = (self._seconds(weights, rows) / elements for rows in (1, FEW_ROWS))  # for each element
            part = sum(w.numel() for w in some)
            less, more = (self._seconds(some, rows) / part for rows in PREFILL_ROWS)
        unpack, flops = line(*PREFILL_ROWS, less, more)
        return MatmulRates(
            bytes_per_s=nbytes / (one * elements),
            few_rows_flops=2 * (FEW_ROWS - 1) / max(few - one, few / 100),
            flops=2 / flops,
            unpack_per_s=1 / unpack,
        )

    def encode_rate(self) -> float:
        """Bytes of bfloat16 weights per second into the 12-bit form."""
        weights = self._matrices(torch.bfloat16, SHAPES)[: len(SHAPES)]
        into = torch.empty(max(bf12_bytes(*w.shape) for w in weights) + LINE, dtype=torch.uint8)
        room = into[-into.data_ptr() % LINE :]

        def one_pass() -> None:
            for weight in weights:
                encode(weight, into=room[: bf12_bytes(*weight.shape)])

        return median_rate(sum(w.nbytes for w in weights), one_pass)

    def _seconds(self, weights: Sequence[torch.Tensor], rows: int) -> float:
        x = {w.shape[1]: torch.rand(rows, w.shape[1]).to(w.dtype) for w in weights}  # [rows, in]

        def one_pass() -> None:
            for weight in weights:
                functional.linear(x[weight.shape[1]], weight)

        return 1 / median_rate(1.0, one_pass)

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
