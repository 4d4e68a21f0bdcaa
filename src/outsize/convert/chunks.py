"""A shard's source bytes in pieces of a few MB, read ahead while others are quantised and written."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

from outsize.convert.recipe import Step
from outsize.convert.source import Source
from outsize.models.spec import StoredTensor
from outsize.store.buffer import Memory
from outsize.store.layout import ALIGNMENT

PIECE = 8 << 20  # bytes of the source
BUFFERS = 6
READERS = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a weight that is quantised, or some bytes of a tensor that is copied; a strided tensor whole."""

    step: Step
    tensor: StoredTensor  # where it lies
    start: int  # from the tensor's first byte
    nbytes: int

    @property
    def last(self) -> bool:
        """Whether the tensor ends with it."""
        return self.start + self.nbytes == self.tensor.nbytes


@dataclass(slots=True)
class Held:
    """A piece in memory, until ``release``."""

    piece: Piece
    view: memoryview
    _memory: Memory
    _free: queue.SimpleQueue[Memory]

    def release(self) -> None:
        """Gives the buffer back."""
        self.view = memoryview(b"")
        self._free.put(self._memory)


def cut(step: Step, tensor: StoredTensor) -> Iterator[Piece]:
    """The pieces of a tensor, in order: whole rows where it is quantised. An empty tensor is one empty piece.

    So is a strided tensor one piece, its whole span: rows of a transposed one lie all over it.
    """
    size = PIECE
    if tensor.strides is not None:
        size = tensor.nbytes
    elif step.packing is not None:
        row = tensor.nbytes // prod(tensor.shape[:-1])
        size = max(1, PIECE // row) * row
    for start in range(0, max(tensor.nbytes, 1), size):
        yield Piece(step, tensor, start, min(size, tensor.nbytes - start))


class ReadAhead:
    """Reads pieces in order, some ahead of the one that is asked for. At most BUFFERS pieces are in memory.

    Strided tensors, which come whole, are not read ahead and have memory of their own: one is there at a time.
    """

    def __init__(self, source: Source, pieces: Sequence[Piece]) -> None:
        self._source = source
        self._pieces = pieces
        self._free: queue.SimpleQueue[Memory] = queue.SimpleQueue()
        room = _up(max((piece.nbytes for piece in pieces if piece.tensor.strides is None), default=0)) + ALIGNMENT
        for _ in range(min(BUFFERS, len(pieces))):
            self._free.put(Memory(room))
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="outsize-convert-read")

    def __iter__(self) -> Iterator[Held]:
        """Buffers are given out in the order of the pieces, so that the next one always has its own."""
        waiting: deque[Future[Held]] = deque()
        left = deque(self._pieces)
        while left or waiting:
            while (
                left
                and not (waiting and left[0].tensor.strides)
                and (memory := self._buffer(wait=not waiting)) is not None
            ):
                waiting.append(self._pool.submit(self._read, left.popleft(), memory))
            yield waiting.popleft().result()

    def close(self) -> None:
        """Ends all reading."""
        self._pool.shutdown(cancel_futures=True)

    def _buffer(self, *, wait: bool) -> Memory | None:
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None

    def _read(self, piece: Piece, memory: Memory) -> Held:
        offset = piece.tensor.offset + piece.start
        skip = offset % ALIGNMENT
        whole = memory.view if piece.tensor.strides is None else Memory(_up(skip + piece.nbytes)).view
        if piece.nbytes:
            view = whole[: _up(skip + piece.nbytes)]
            self._source.read_into(piece.tensor.file, offset - skip, view, skip + piece.nbytes)
        return Held(piece, whole[skip : skip + piece.nbytes], memory, self._free)


def _up(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
