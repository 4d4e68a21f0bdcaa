"""Random weights by the gigabyte: one block of normal values, made once and read in a circle.

Drawing normal values costs ten times more than writing them, so they are drawn once (64 MiB as bfloat16) and reused,
each tensor from a place that its name decides. The block has a prime number of values: a matrix longer than the block
never repeats a row, since no row length divides it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np

BLOCK_VALUES = 33_554_393  # the largest prime below 2**25
_DRAW = 1 << 22  # values drawn at once, so that the float32 draft stays small
_CHUNK_BYTES = 8 << 20
_FORMATS: dict[str, np.dtype[np.generic]] = {
    "bfloat16": np.dtype("<u2"),  # numpy has no bfloat16: its bits are kept as unsigned integers
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}


def item_bytes(dtype: str) -> int:
    """Bytes of one value; raises SystemExit for a data type that is not made here."""
    if dtype not in _FORMATS:
        raise SystemExit(f"data type {dtype} is not made here; choose one of {', '.join(_FORMATS)}")
    return _FORMATS[dtype].itemsize


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in the bytes of another data type, rounded to nearest even."""
    if dtype != "bfloat16":
        return values.astype(_FORMATS[dtype])
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


class Noise:
    """N(0, 0.02) weights of one data type, the same for the same seed and name on every machine."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.dtype = dtype
        self.seed = seed
        generator = np.random.default_rng(seed)
        block = np.empty(BLOCK_VALUES, dtype=_FORMATS[dtype])
        for start in range(0, BLOCK_VALUES, _DRAW):
            count = min(_DRAW, BLOCK_VALUES - start)
            draft = generator.standard_normal(count, dtype=np.float32)
            draft *= np.float32(0.02)
            block[start : start + count] = encode(draft, dtype)
        self._block = block.data.cast("B")

    def weights(self, name: str, values: int) -> Iterator[memoryview]:
        """``values`` random weights as pieces of at most 8 MiB."""
        item = item_bytes(self.dtype)
        position = zlib.crc32(f"{self.seed} {name}".encode()) % BLOCK_VALUES * item
        left = values * item
        while left:
            size = min(left, _CHUNK_BYTES, len(self._block) - position)
            yield self._block[position : position + size]
            position = (position + size) % len(self._block)
            left -= size

    def ones(self, values: int) -> Iterator[memoryview]:
        """``values`` ones: the scale of a norm, so that activations neither vanish nor explode."""
        yield encode(np.ones(values, dtype=np.float32), self.dtype).data.cast("B")

    def tensor(self, name: str, shape: tuple[int, ...]) -> Iterator[memoryview]:
        """A norm's scale (one dimension, named ``…weight``) as ones, everything else as random weights."""
        values = int(np.prod(shape))
        if len(shape) == 1 and name.endswith("weight"):
            return self.ones(values)
        return self.weights(name, values)


def settle(descriptor: int) -> None:
    """Write a finished file to the disk and let go of its pages, so that no measurement finds it cached."""
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
