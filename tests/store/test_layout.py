"""Layouts: every tensor's bytes, aligned reads, and never more room than is planned for."""

from __future__ import annotations

import random

import pytest

from outsize.models.spec import StoredTensor
from outsize.store.layout import ALIGNMENT, GAP, lay_out


@pytest.mark.parametrize("seed", range(30))
def test_random_tensors_in_random_files(seed: int) -> None:
    dice = random.Random(seed)
    ends = {"a": dice.randrange(5000), "b": dice.randrange(100)}
    tensors = []
    for number in range(dice.randrange(1, 20)):
        file = dice.choice("ab")
        offset = ends[file] + dice.choice((0, 0, 64, 4096, GAP, GAP + 1, 1 << 20))
        nbytes = dice.choice((0, 1, 100, 4096, 70000))
        tensors.append(StoredTensor(str(number), "uint8", (nbytes,), file, offset, nbytes))
        ends[file] = offset + nbytes
    dice.shuffle(tensors)
    layout = lay_out(tensors)
    buffer: dict[int, tuple[str, int]] = {}
    position = 0
    for extent in layout.extents:
        assert extent.offset % ALIGNMENT == extent.length % ALIGNMENT == extent.position % ALIGNMENT == 0
        assert extent.position == position
        assert extent.length - ALIGNMENT < extent.needed <= extent.length or extent.length == extent.needed == 0
        position += extent.length
        buffer[extent.position] = (extent.file, extent.offset)
    assert position == layout.nbytes
    for tensor in tensors:
        at = layout.position(tensor)
        start = max(p for p in buffer if p <= at)
        file, offset = buffer[start]
        assert (file, offset + at - start) == (tensor.file, tensor.offset)
    assert layout.nbytes <= sum(t.nbytes for t in tensors) + 2 * ALIGNMENT * len(tensors)


def test_nothing_and_the_same_twice() -> None:
    assert lay_out([]).nbytes == 0
    one = StoredTensor("x", "uint8", (10,), "a", 4000, 10)
    assert lay_out([one, one]) == lay_out([one])
    assert lay_out([one]).files == {"a"}
