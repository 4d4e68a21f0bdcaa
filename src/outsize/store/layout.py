"""Which byte ranges of which files a unit needs, and where each lands in one buffer. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from outsize.models.spec import StoredTensor

ALIGNMENT = 4096  # direct reads: file offset, length and address in multiples of the device's block, 4 KiB at most
# Bytes between two tensors that are read along: not more than a range of its own would lose at its two ends, so that a
# unit never takes more than its tensors' bytes and 2 * ALIGNMENT for each of them, which is what is planned for.
GAP = 2 * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Extent:
    """One contiguous range of a file, aligned at both ends, and its place in the buffer.

    ``length`` may pass the end of the file by less than ALIGNMENT; ``needed`` does not.
    """

    file: str
    offset: int
    length: int
    needed: int
    position: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The extents of a unit and the position of every tensor in the buffer that they are read into."""

    extents: tuple[Extent, ...]
    positions: dict[tuple[str, int], int]  # (file, offset of the tensor) -> position in the buffer
    nbytes: int

    def position(self, tensor: StoredTensor) -> int:
        """Where a tensor's first byte is in the buffer."""
        return self.positions[tensor.file, tensor.offset]

    @property
    def files(self) -> frozenset[str]:
        """The files that the extents lie in."""
        return frozenset(extent.file for extent in self.extents)


def lay_out(tensors: Iterable[StoredTensor]) -> Layout:
    """Neighbours in a file become one extent; each extent starts at an aligned place of the buffer."""
    extents: list[Extent] = []
    positions: dict[tuple[str, int], int] = {}
    run: list[StoredTensor] = []
    nbytes = 0

    def close() -> None:
        nonlocal nbytes
        start = run[0].offset - run[0].offset % ALIGNMENT
        end = max(t.offset + t.nbytes for t in run)
        length = _up(end - start)
        extents.append(Extent(run[0].file, start, length, end - start, nbytes))
        for tensor in run:
            positions[tensor.file, tensor.offset] = nbytes + tensor.offset - start
        nbytes += length

    for tensor in sorted(set(tensors), key=lambda t: (t.file, t.offset, t.nbytes)):
        if run:
            end = max(t.offset + t.nbytes for t in run)
            if tensor.file != run[0].file or tensor.offset > end + GAP:
                close()
                run = []
        run.append(tensor)
    if run:
        close()
    return Layout(tuple(extents), positions, nbytes)


def _up(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
