"""Strided views of stored bytes, read without torch: transposed, sliced and expanded tensors, as PyTorch saves them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from outsize.models.dtypes import dtype_bytes
from outsize.models.spec import StoredTensor

FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}  # of a memoryview's elements, by their bytes; bits are all that counts


def elements(span: memoryview, stored: StoredTensor) -> Iterator[bytes | memoryview]:
    """The elements' bytes in row-major order, one run along the last dimension after the other.

    ``span``: the ``stored.nbytes`` bytes that the tensor lies in. What is contiguous comes as it is, in one run.
    """
    if stored.strides is None or not stored.shape:
        yield span
        return
    values = span.cast("B").cast(FORMATS[dtype_bytes(stored.dtype)])  # type: ignore[call-overload]
    *outer, count = stored.shape
    *steps, step = stored.strides
    for index in product(*map(range, outer)):
        start = sum(place * stride for place, stride in zip(index, steps, strict=True))
        if step:
            yield values[start : start + (count - 1) * step + 1 : step].tobytes()
        else:
            yield values[start : start + 1].tobytes() * count
